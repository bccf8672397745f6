"""`tsseq evaluate TARGET`: one command per benchmark. To add one: a typed function, and a line here."""

from tsseq.cli.command import Command

TARGETS: dict[str, Command] = {
    "gift-eval": Command("tsseq.cli.gift_eval:gift_eval", "zero-shot forecasting, the GIFT-Eval leaderboard"),
    "inference": Command("tsseq.cli.evaluate_inference:inference", "settings of the forecast, on validation series"),
    "uea": Command("tsseq.cli.evaluate_uea:uea", "classification, the UEA archive of multivariate series"),
    "state-tracking": Command("tsseq.cli.evaluate_state_tracking:state_tracking", "formal languages and word problems"),
    "ltsf": Command("tsseq.cli.evaluate_ltsf:ltsf", "linear forecasters trained on the long-horizon sets"),
}
