"""Every sequence mixer by name. To add one: a file beside this one, and a line here."""

from tsseq.mixers.base import SequenceMixer
from tsseq.mixers.block_lrnn import BlockLRNN
from tsseq.mixers.efla import EFLA
from tsseq.mixers.gate_loop import GateLoop
from tsseq.mixers.gated_delta_product import GatedDeltaProduct
from tsseq.mixers.gla import GLA
from tsseq.mixers.hgrn import HGRN
from tsseq.mixers.linear_attention import LinearAttention
from tsseq.mixers.local_attention import LocalAttention
from tsseq.mixers.log_ncde import LogNCDE
from tsseq.mixers.longhorn import Longhorn
from tsseq.mixers.lru import LRU
from tsseq.mixers.lstm import LSTM
from tsseq.mixers.mamba import Mamba
from tsseq.mixers.mamba2 import Mamba2
from tsseq.mixers.min_gru import MinGRU
from tsseq.mixers.min_lstm import MinLSTM
from tsseq.mixers.mlstm import MLSTM
from tsseq.mixers.mlstm_sigmoid import MLSTMSigmoid
from tsseq.mixers.s4d import S4D
from tsseq.mixers.s5 import S5
from tsseq.mixers.slice import SLiCE
from tsseq.mixers.slstm import SLSTM

MIXERS: dict[str, type[SequenceMixer]] = {
    "block_lrnn": BlockLRNN,
    "efla": EFLA,
    "gate_loop": GateLoop,
    "gated_delta_product": GatedDeltaProduct,
    "gla": GLA,
    "hgrn": HGRN,
    "linear_attention": LinearAttention,
    "local_attention": LocalAttention,
    "log_ncde": LogNCDE,
    "longhorn": Longhorn,
    "lru": LRU,
    "lstm": LSTM,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "min_gru": MinGRU,
    "min_lstm": MinLSTM,
    "mlstm": MLSTM,
    "mlstm_sigmoid": MLSTMSigmoid,
    "s4d": S4D,
    "s5": S5,
    "slice": SLiCE,
    "slstm": SLSTM,
}
