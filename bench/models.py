"""``python -m bench models MODEL TEXTS``: what skipping does to a language model, over shares, lengths and ways.

MODEL is what transformers loads, TEXTS a file of ``bench texts`` that was made with its tokenizer. Every measurement is
kept in the folder ``--state`` at once, so that a run that was cut off goes on, and parts can be run in turn: the last
result file has all that was measured. Parts: curves (perplexity over skipped shares, by ways to find thresholds),
needles (found ones, likewise), lengths (targets against shares, on lengths that were not calibrated on).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from skimattn.errors import ArgumentError

from . import machine, models_report, models_texts, results
from .models_plan import PARTS, Plan, plan_for
from .models_texts import Texts

_NUMBERS = ("windows", "calibration", "alone", "heads_alone", "steps", "steps_calibrated", "decode_batch", "needles")
_LISTS = ("targets", "thresholds", "tried_alone", "lengths", "fit_lengths", "length_targets")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m bench models", description=__doc__)
    made.add_argument("model", help="a folder of transformers, or a GGUF file")
    made.add_argument("texts", type=Path, help="a file of bench texts")
    made.add_argument("--name", help="of the model, in results; default: the last part of MODEL")
    made.add_argument("--length", type=int, required=True, help="tokens of the longest windows")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--phases", nargs="+", choices=("prefill", "decode"), default=["prefill", "decode"])
    made.add_argument("--methods", nargs="+", help="ways to find thresholds; default: all of the plan")
    made.add_argument("--state", type=Path, required=True, help="folder in which measurements are kept")
    made.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the JSON, Markdown and PNG files")
    for name in (*_NUMBERS, "length_windows"):
        made.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default: {getattr(Plan(8192), name)}")
    for name in _LISTS:
        made.add_argument(f"--{name.replace('_', '-')}", nargs="+", type=int if name.endswith("lengths") else float)
    return made


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that the options ask for; ``ValueError`` if there is no such method."""
    plan = plan_for(options.length)
    changes: dict[str, Any] = {
        name: value for name in (*_NUMBERS, "length_windows") if (value := getattr(options, name)) is not None
    }
    changes |= {name: tuple(value) for name in _LISTS if (value := getattr(options, name)) is not None}
    if options.methods:
        from .models_plan import methods

        unknown = [name for name in options.methods if name not in methods(plan)]
        if unknown:
            raise ValueError(f"--methods: expected some of {', '.join(methods(plan))} (got {unknown[0]})")
        changes["methods"] = tuple(options.methods)
    return replace(plan, **changes)


def measure(name: str, model: Any, texts: Texts, plan: Plan, options: argparse.Namespace, document: Any) -> Path:
    """Run the parts into a document that is written after every case; where it is."""
    from .models_parts import cases
    from .models_run import Subject

    subject = Subject(name, model, texts, plan, options.state)
    path = results.place(options.out, document, f"{name} {document['gpu']}")
    for part in options.parts:
        for phase in options.phases:
            for case in cases(subject, part, phase):
                document["cases"].append(case)
                results.save(document, path)
                print(models_report.case_table(case), flush=True)
    document["after"] = machine.gpu_state()
    results.finish(document)
    results.save(document, path)
    return path


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the files. Exit status 1 if something cannot be had."""
    options = parser().parse_args(arguments)
    try:
        texts, plan = models_texts.load(options.texts), plan_of(options)
        from skimattn.integrations.transformers import load

        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = load(options.model, device=device)
        gpu = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        name = options.name or Path(options.model).stem
        document = results.new_document("models", arguments)
        document |= {"gpu": gpu, "model": name, "commit": machine.commit(), "versions": machine.versions()}
        document |= {"before": machine.gpu_state(), "after": None, "plan": plan.plain, "cases": []}
        path = measure(name, loaded.model, texts, plan, options, document)
    except (ArgumentError, OSError, ValueError) as error:
        print(f"bench models: {error}", file=sys.stderr)
        return 1
    print(f"\n{models_report.summary(document['cases'])}")
    print("\n".join(["", str(path), *models_report.write(document, path)]))
    return 1 if any("failed" in case for case in document["cases"]) else 0
