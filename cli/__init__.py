"""The command line. One typed function per command; `__main__.COMMANDS` names them all."""
