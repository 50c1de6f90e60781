"""The meeting point with seqio: our datasets as seqio Tasks, foreign seqio tasks as our datasets.

    import data_pipelines.tasks                          # registers what stands on this machine
    seqio.get_mixture_or_task("prompts_taste").get_dataset(...)

    python -m data_pipelines.tasks list
    python -m data_pipelines.tasks materialise --task NAME --module my_tasks --out DIR

Training never comes here: this module alone imports seqio, and with it TensorFlow.

Each family of codes of a dataset is a Task "<dataset>_<family>" (signs other than letters, digits
and "_" become "_"). Its "targets" are the codes in seqio's conventions, see `project`; that of a
speech family has the text ids as "inputs". A registered mixture is a Mixture for each family that
all its parts have. seqio mixes examples at the rates by which `slm_jax` mixes packed rows.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from data_pipelines import fetch, text_corpus, tokens
from slm_jax.data import manifest, registry, schema, shards
from slm_jax.data.dataset import Split, open_dataset
from slm_jax.data.registry import DatasetSpec, MixtureSpec
from slm_jax.data.split import SPLITS, split_of
from slm_jax.errors import UserError, run_main
from slm_jax.streams import fingerprint
from slm_jax.tokenizers.segmenters import segmenter_for
from slm_jax.tokenizers.text import TextTokenizer

EOS = 1  # seqio's padding is 0, and its losses and packing leave every 0 out
FIRST = 2  # id of code 0 of level 0


def project(codes: np.ndarray, vocab: Sequence[int]) -> np.ndarray:
    """Codes [n, levels] as one sequence [n * levels] of ids for seqio.

    Items follow one another, coarse level first; code c of level k is
    FIRST + vocab[0] + ... + vocab[k - 1] + c.
    """
    return (codes + _offsets(vocab)).astype(np.int32).ravel()


def restore(ids: np.ndarray, vocab: Sequence[int]) -> np.ndarray:
    """Inverse of `project` on ids without EOS and padding."""
    return np.asarray(ids, np.int32).reshape(-1, len(vocab)) - _offsets(vocab)


class ShardSource(seqio.DataSource):
    """Families of one of our datasets as a seqio source.

    Attributes:
      families: feature -> family.
    """

    def __init__(self, root: Path, families: dict[str, str]):
        self._dataset = open_dataset(root)
        self.families = families
        counts = {name: sum(c) for name, c in self._dataset.manifest.splits.items()}
        dead = [t.split for t in self._dataset.manifest.tombstones.values()]
        counts = {name: count - dead.count(name) for name, count in counts.items()}
        super().__init__([n for n in counts if counts[n]], counts, caching_permitted=False)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        """The files of the first family."""
        return self._dataset.manifest.files(split, next(iter(self.families.values())))

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: dict[str, int] | None = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """Examples {feature: int32 [n], "text": string}; the whole split is shuffled, not files."""
        records = self._records(split)
        order = np.arange(len(records))
        if shuffle:
            order = np.random.default_rng(None if seed is None else int(seed)).permutation(order)
        if shard_info:
            order = order[shard_info.index :: shard_info.num_shards]

        def examples() -> Iterator[dict[str, np.ndarray | str]]:
            for index in order.tolist():
                record = records[index]
                ids = {
                    feature: project(record[family].values, records.specs[family].vocab)
                    for feature, family in self.families.items()
                }
                yield ids | {"text": record[schema.WORDS].text}

        ids = tf.TensorSpec([None], tf.int32)
        signature = dict.fromkeys(self.families, ids) | {"text": tf.TensorSpec([], tf.string)}
        return tf.data.Dataset.from_generator(examples, output_signature=signature)

    @functools.cache  # noqa: B019  (a source lives as long as seqio's registry)
    def _records(self, split: str) -> Split:
        return self._dataset.split(split, [schema.WORDS, *self.families.values()])


def add_dataset(spec: DatasetSpec) -> list[str]:
    """Registers the Tasks of a dataset that stands on this machine; returns their names."""
    specs = spec.open().specs
    codes = [name for name, stream in specs.items() if stream.kind == "codes"]
    texts = [name for name in codes if name.startswith("text-")]
    added = []
    for family in codes:
        families = {"targets": family}
        if texts and family not in texts:
            families = {"inputs": texts[0], "targets": family}
        name = task_name(spec.name, family)
        added.append(name)
        if name in seqio.TaskRegistry.names():
            continue
        seqio.TaskRegistry.add(
            name,
            source=ShardSource(spec.root, families),
            preprocessors=[seqio.preprocessors.append_eos],
            output_features={
                feature: seqio.Feature(
                    seqio.PassThroughVocabulary(FIRST + sum(specs[used].vocab), EOS), add_eos=True
                )
                for feature, used in families.items()
            },
        )
    return added


def add_mixture(name: str, spec: MixtureSpec) -> list[str]:
    """Registers the Mixtures of a mixture whose datasets all stand here; returns their names."""
    parts = [add_dataset(dataset) for dataset in spec.datasets]
    prefixes = [task_name(dataset.name, "") for dataset in spec.datasets]
    shared = set.intersection(
        *(
            {task.removeprefix(p) for task in tasks}
            for tasks, p in zip(parts, prefixes, strict=True)
        )
    )
    added = []
    for family in sorted(shared):
        mixture = task_name(name, family)
        added.append(mixture)
        if mixture not in seqio.MixtureRegistry.names():
            rates = [float(rate) for rate in spec.rates]
            tasks = [(p + family, rate) for p, rate in zip(prefixes, rates, strict=True)]
            seqio.MixtureRegistry.add(mixture, tasks)
    return added


def add_registered() -> list[str]:
    """Registers every dataset and mixture of the registry that is complete on this machine."""
    added: list[str] = []
    for name, spec in registry.registered().items():
        datasets = spec.datasets if isinstance(spec, MixtureSpec) else (spec,)
        if all((dataset.root / manifest.FILE).exists() for dataset in datasets):
            mixture = isinstance(spec, MixtureSpec)
            added += add_mixture(name, spec) if mixture else add_dataset(spec)
    return added


def task_name(dataset: str, family: str) -> str:
    """Name of the Task of a family of a dataset (or of a Mixture)."""
    return re.sub(r"\W", "_", f"{dataset}_{family}")


def materialise(
    task: str,
    out: Path,
    *,
    splits: Sequence[str] = ("train",),
    language: str = "en",
    licence: str = "unknown",
    max_words: int = 64,
    records_per_shard: int = 10_000,
    command: str = "",
) -> manifest.Manifest:
    """Writes the text of a seqio Task as a text-only dataset, which needs no seqio to train on.

    The features of an example are joined by a space and cut at sentence ends. Which of our splits a
    piece comes to is decided by its text, as everywhere in the project, not by seqio's splits. An
    interrupted run continues.

    Args:
      task: name in seqio's registry.
      out: folder of the dataset.
      splits: of the task to take.
      language, licence: of the text.
      max_words: longest piece.
      records_per_shard: most pieces in a file.
      command: that made the dataset, for its manifest.
    Raises:
      UserError: unknown task or split, a task without text, or `out` holds another dataset.
    """
    found = _task(task, splits)
    made_by = fingerprint("seqio", task, splits, language, max_words, records_per_shard)
    if (out / manifest.FILE).exists():
        present = manifest.load_manifest(out)
        if present.families[schema.WORDS].spec.fingerprint == made_by:
            return present
        raise UserError(f"{out} holds another dataset", "give another folder")
    staging = out / f".staging-{made_by}"
    pieces: dict[str, list[schema.Utterance]] = {split: [] for split in SPLITS}
    staged: dict[str, list[Path]] = {split: [] for split in SPLITS}

    def flush(split: str) -> None:
        path = staging / f"{split}-{len(staged[split]):05d}"
        if not path.exists():
            shards.write_shard(path, pieces[split])
        staged[split].append(path)
        pieces[split].clear()

    for split in splits:
        for utterance in _utterances(found, split, language, max_words):
            ours = split_of(utterance.text)
            pieces[ours].append(utterance)
            if len(pieces[ours]) == records_per_shard:
                flush(ours)
    for split in SPLITS:
        if pieces[split] or not staged[split]:
            flush(split)
        for index, path in enumerate(staged[split]):
            name = shards.shard_name(split, index, len(staged[split]))
            with shards.disk_errors(out / schema.WORDS / name):
                (out / schema.WORDS).mkdir(exist_ok=True)
                shards.publish(path, out / schema.WORDS / name)
    specs = [schema.words_spec(made_by)]
    made = manifest.build_manifest(out, task, specs, licences=[licence], command=command)
    shutil.rmtree(staging)
    return made


def _utterances(
    task: seqio.Task, split: str, language: str, max_words: int
) -> Iterator[schema.Utterance]:
    segmenter = segmenter_for(language)
    dataset = task.get_dataset(None, split, shuffle=False, num_epochs=1)
    for number, example in enumerate(dataset.as_numpy_iterator()):
        text = " ".join(" ".join(_text(task, f, example) for f in task.output_features).split())
        for part, piece in enumerate(text_corpus.pieces(text, max_words)):
            words = tuple(schema.Word(word, 0.0, 0.0) for word in segmenter.split(piece))
            id = f"{task.name}/{split}/{number}.{part}"
            yield schema.Utterance(id, words, language, "", 0.0, f"seqio {task.name}", piece)


def _text(task: seqio.Task, feature: str, example: dict[str, np.ndarray]) -> str:
    """The text of a feature: as it was before tokenizing if the task kept that, else decoded."""
    value = example.get(f"{feature}_pretokenized", example[feature])
    if isinstance(value, bytes):
        return value.decode()
    text = task.output_features[feature].vocabulary.decode(np.ravel(value).tolist())
    if not isinstance(text, str):
        message = f"feature {feature!r} of seqio task {task.name!r} is not text"
        raise UserError(message, "materialise takes tasks whose vocabularies decode to text")
    return text


def _task(name: str, splits: Sequence[str]) -> seqio.Task:
    known = list(seqio.TaskRegistry.names())
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"seqio has no task {name!r}", hint + "Name the module that adds it with --module"
        )
    task = seqio.TaskRegistry.get(name)
    for split in splits:
        if split not in task.splits:
            message = f"seqio task {name!r} has no split {split!r}"
            raise UserError(message, f"take some of: {', '.join(task.splits)}")
    return task


def _offsets(vocab: Sequence[int]) -> np.ndarray:
    return FIRST + np.cumsum([0, *vocab[:-1]])


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"cannot import {module}: {error}", "put it on PYTHONPATH") from error


def _list() -> None:
    names = add_registered()
    for name in names:
        provider = seqio.get_mixture_or_task(name)
        sizes = {k: f.vocabulary.vocab_size for k, f in provider.output_features.items()}
        kind = "mixture" if name in seqio.MixtureRegistry.names() else "task"
        print(f"{kind} {name}: vocabulary of {sizes}")
    if not names:
        print("no dataset of the registry is complete on this machine")


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.tasks")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="Tasks and Mixtures of the datasets on this machine")
    verb = verbs.add_parser("materialise", help="write a seqio text task as a dataset of ours")
    verb.add_argument("--task", required=True)
    verb.add_argument("--module", required=True, help="Python module that registers the task")
    verb.add_argument("--out", required=True, type=Path, metavar="DIR")
    verb.add_argument("--splits", nargs="+", default=["train"])
    verb.add_argument("--language", default="en")
    verb.add_argument("--licence", default="unknown")
    verb.add_argument("--max_words", type=int, default=64)
    verb.add_argument("--records_per_shard", type=int, default=10_000)
    verb.add_argument("--family", default="text-smollm2", help="name of the text LLM's ids")
    verb.add_argument("--text_tokenizer", default="smollm2", help="smollm2, .gguf or .json file")
    options = vars(parser.parse_args())
    if options.pop("verb") == "list":
        return _list()
    family, tokenizer = options.pop("family"), options.pop("text_tokenizer")
    values = [
        f"--{k} {' '.join(map(shlex.quote, v)) if isinstance(v, list) else shlex.quote(str(v))}"
        for k, v in (options | {"family": family, "text_tokenizer": tokenizer}).items()
    ]
    _import(options.pop("module"))
    command = " ".join(["python -m data_pipelines.tasks materialise", *values])
    materialise(**options, command=command)
    tokens.add_text(options["out"], family, TextTokenizer.load(fetch.locate(tokenizer)))
    print(f"{options['out']}: complete")


if __name__ == "__main__":
    run_main(_main)
else:
    add_registered()
