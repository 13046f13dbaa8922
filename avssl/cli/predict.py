"""Predict the classes of clips with a fine-tuned network or a saved linear classifier.

    avssl predict runs/mine/finetune/split/trained clip.mp4
    avssl predict weights/classes clip.mp4 another.mp4 --top 3 --json

WEIGHTS is the run of a fine-tuning (avssl evaluate RUN finetune, OUT/<split>/trained), or a folder that
avssl evaluate RUN linear --save has written. Scores are softmax probabilities, averaged over clips and crops.
Exit code: 0 done, 1 a file could not be read or lacks the classifier's modality (it is named), 2 wrong call.
"""

import argparse
from pathlib import Path

from avssl.cli.common import add_json, check_at_least, new_parser, run, warn_unread
from avssl.evaluate.predict import predict
from avssl.files import print_result
from avssl.weights.load import load, with_data


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__name__, __doc__)
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="run of a fine-tuning, or saved classifier")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="clips")
    parser.add_argument("--top", type=int, default=5, help="classes to print (default: 5)")
    parser.add_argument("--num-clips", type=int, default=10, help="clips of each file (default: 10)")
    parser.add_argument("--num-crops", type=int, default=3, help="crops of each clip (default: 3)")
    add_json(parser)
    return run(_predict, parser.parse_args(arguments))


def _predict(given: argparse.Namespace) -> int:
    check_at_least(given, 1, "top", "num_clips", "num_crops")
    model = with_data(load(given.weights), num_workers=0)
    if model.classifier is None:
        raise ValueError(
            f"{given.weights} has no classifier: fine-tune with avssl evaluate RUN finetune and give "
            "OUT/<split>/trained, or save one with avssl evaluate RUN linear --save"
        )
    found, lines, errors = {}, [], {}
    for path in given.files:
        try:
            scores = predict(model, path, num_clips=given.num_clips, num_crops=given.num_crops)
        except ValueError as error:
            errors[str(path)] = str(error)
            continue
        best = sorted(scores.items(), key=lambda entry: -entry[1])[: given.top]
        found[str(path)] = dict(best)
        lines += [str(path), *(f"{score:6.3f}  {name}" for name, score in best)]
    code = warn_unread(errors)
    print_result(found, "\n".join(lines), to=given.json)
    return code
