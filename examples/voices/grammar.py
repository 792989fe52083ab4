"""Sentences of a domain, drawn from the rules of a grammar file."""

import random
import re
from pathlib import Path

GRAMMAR = Path(__file__).with_name("grammar.txt")
_RULE = re.compile(r"\{(\w+)\}")


def read_grammar(path: Path = GRAMMAR) -> dict[str, list[str]]:
    """Alternatives by rule. Raises ValueError naming a rule that is used and not there."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    rules = {name: body.split(" | ") for name, body in (line.split(": ", 1) for line in lines)}
    for name in _RULE.findall("".join(lines)):
        if name not in rules:
            raise ValueError(f"{path} uses a rule {name}, which it does not have")
    return rules


def sentence(rules: dict[str, list[str]], rng: random.Random) -> str:
    """One sentence of lower-case words, without a full stop."""

    def expand(rule: str) -> str:
        return _RULE.sub(lambda found: expand(found[1]), rng.choice(rules[rule]))

    return expand("sentence")


def distinct(rules: dict[str, list[str]], number: int, seed: str, without: set[str]) -> list[str]:
    """`number` different sentences that depend on the seed alone, none of them among `without`."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < number:
        text = sentence(rules, rng)
        if text not in without and len(set(text.split())) > 3:
            found[text] = None
    return list(found)
