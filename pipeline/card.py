"""`OUTPUT/README.md`, the dataset card: `datasets.load_dataset(OUTPUT)` finds the rows by it, and `hf upload`
pushes the output as it is.

Written when a run ends. Of a card that is there, what a run knows is written anew; fields of the front matter
that were filled in by hand, and text outside of the two marks, stay.
"""

import time
from typing import Any

import duckdb
import pyarrow as pa
import yaml

from pipeline import storage
from pipeline.description import Description
from pipeline.errors import RunError
from pipeline.output.folder import OutputFolder
from pipeline.readable import hours, integer, number, percent

NAME = "README.md"
BEGIN, END = "<!-- written by clvp: -->", "<!-- end of what was written by clvp -->"
SCORES = """
    select count(*), coalesce(sum(duration_s), 0), avg(finished::int), avg(known), quantile_cont(known, 0.05),
    median(known), quantile_cont(known, 0.95)
    from (select *, if(isfinite(score), score, null) as known from found) """

# What only a person knows.
TO_FILL = """---
license: other
license_name: to be filled in
license_link: "#licences-and-consent"
task_categories: [text-to-speech]
tags: [audio, synthetic, clvp]
---
"""
LICENCES = """
## Licences and consent

To be filled in before this is shared, with `license` and `language` in the front matter:

| of | licence, and where it comes from |
|---|---|
| the texts | |
| the voices, with the consent of the speakers | |
| the model's weights | |
"""

# Types whose names differ in `datasets`.
DTYPES = {"float": "float32", "double": "float64", "halffloat": "float16", "date32[day]": "date32"}
AUDIO = {"name": "audio", "dtype": {"audio": {"sampling_rate": 24_000}}}


def write_card(output: OutputFolder, description: Description) -> None:
    """Write the card of an output that is held. Raises RunError for one that is there and cannot be read."""
    from huggingface_hub import DatasetCard  # a quarter of a second, which no row need wait for

    uri, names = output.file("", NAME), output.parquet_files("data")
    try:
        found = storage.read_bytes(uri).decode() if storage.exists(uri) else TO_FILL
        card = DatasetCard(found, ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"the dataset card {uri} cannot be read: mend or delete it ({reason})") from error
    files = [{"split": "train", "path": "data/*.parquet"}]
    features = [_feature(field) for field in output.schema("data", names[0])] if names else []
    card.data["configs"] = [{"config_name": "default", "data_files": files}] if names else None
    card.data["dataset_info"] = {"features": features} if names and None not in features else None
    above, mark, rest = card.text.partition(BEGIN)
    below = rest.partition(END)[2] if mark else LICENCES
    body = _body(output, names, description)
    card.text = f"{above.strip()}\n{BEGIN}\n{body}\n{END}\n{below.lstrip()}".lstrip()
    output.write("", NAME, str(card).encode())


def _body(output: OutputFolder, names: list[str], description: Description) -> str:
    """What a run has to say, in Markdown."""
    name, day = storage.name_of(output.uri), time.strftime("%Y-%m-%d", time.gmtime())
    rows, table = _scores(output, names)
    about = {"checkpoint": description.about.model, "began": description.about.began}
    told = {**about, **description.settings, "engine": dict(description.engine or {})}
    return f"""# {name}

Synthetic speech: for each of {rows:,} texts, candidates in the voice of a reference clip, ranked by how well
they fit the text (CLVP's score). Made by clvp {description.package_version}, {day}.

```python
from datasets import load_dataset

dataset = load_dataset("{name}", split="train")
```

## Scores

{table}

## Settings

`run.json` has these too, with digests of the model's files; `errors/` has the rows that failed, and why.

```yaml
{yaml.safe_dump(told, sort_keys=False, allow_unicode=True)}```"""


def _scores(output: OutputFolder, names: list[str]) -> tuple[int, str]:
    """Number of rows, and a table of the scores of their candidates."""
    lines = ["| | candidates | speech | with a stop token | mean | 5 % | median | 95 % |", "|---" * 8 + "|"]
    paths = [f"candidates.list.element.{name}" for name in ("rank", "score", "finished", "duration_s")]
    with duckdb.connect() as database:
        database.execute("create table found (rank int, score float, finished bool, duration_s float)")
        for name in names:
            with output.open_table("data", name) as parquet:
                for batch in parquet.iter_batches(columns=paths):
                    database.register("batch", pa.table(batch))
                    database.execute(
                        "insert into found by name select unnest(candidates, recursive := true) from batch"
                    )
        all_of = [database.execute(SCORES + where).fetchall()[0] for where in ("where rank = 1", "")]
    names = ["the best of each row", "all that are stored"]
    for what, (count, spoken, finished, *scores) in zip(names, all_of, strict=True):
        cells = [what, integer(count), hours(spoken / 3600), percent(finished), *map(number, scores)]
        lines.append(f"| {' | '.join(cells)} |")
    return all_of[0][0], "\n".join(lines)


def _feature(field: pa.Field, audio: bool = True) -> dict[str, Any] | None:
    """A column as the front matter of a card names it; None where `datasets` has no such type."""
    if audio and field.name == "audio" and pa.types.is_struct(field.type):
        return AUDIO
    kind = field.type
    if pa.types.is_struct(kind):
        parts = [_feature(part, audio=False) for part in kind]
        return {"name": field.name, "struct": parts} if None not in parts else None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        item = _feature(kind.value_field.with_name(field.name), audio=False)
        if item is None:
            return None
        inner = {k: v for k, v in item.items() if k != "name"}
        return {"name": field.name, "list": inner.get("dtype") or inner.get("struct") or inner}
    if pa.types.is_nested(kind) or pa.types.is_dictionary(kind):
        return None
    return {"name": field.name, "dtype": DTYPES.get(str(kind), str(kind))}
