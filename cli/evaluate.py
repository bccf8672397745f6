"""`tsseq evaluate TARGET`: one command per benchmark. To add one: a typed function, and a line here."""

from tsseq.cli.command import Command

TARGETS: dict[str, Command] = {
    "gift-eval": Command("tsseq.cli.gift_eval:gift_eval", "zero-shot forecasting, the GIFT-Eval leaderboard"),
}
