"""mLSTM with a sigmoid input gate: no running maximum, no normaliser."""

from typing import ClassVar

from tsseq.mixers.mlstm import MLSTM


class MLSTMSigmoid(MLSTM):
    """C_t = σ(f̃_t) C_{t−1} + σ(ĩ_t) k_t v_tᵀ,  h_t = C_tᵀ q_t, in the block of `MLSTM`.

    A bounded input gate needs neither the running maximum nor, since h is normalised per head anyway, the
    normaliser; the paper finds language models as good and the kernel faster. It tracks what mLSTM tracks.

    State: the last convolution inputs (batch × kernel − 1 × inner) and C (batch × head × key × value).

    Paper: Beck et al., "Tiled flash linear attention", arXiv 2503.14376.
    """

    exponential: ClassVar[bool] = False
