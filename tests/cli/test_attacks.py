from __future__ import annotations

from dcn_plugin.adapters.attack_registry import open_attacks as of_the_registry
from dcn_plugin.cli.attacks import open_attacks


def test_the_command_line_reads_attacks_as_the_registry_does() -> None:
    texts = ["pgd(1,20,16)", "cw-paper,confidence=3", "ti-fgsm,eps=0.1,kernel=5"]
    assert list(map(repr, open_attacks(texts))) == list(map(repr, of_the_registry(texts)))
