"""tsseq inside other packages: sktime and gluonts. Import the module of the one you use."""
