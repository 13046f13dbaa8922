"""The README of a folder of exported weights, out of its facts. No figure of quality stands in it: those are results
of an evaluation.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

import avssl


def write_card(config: Mapping[str, Any], encoders: nn.ModuleDict, *, folder: str) -> str:
    """The card in Markdown.

    Args:
        config: what config.json holds. Its facts are of one of two kinds: run (method, steps, seed, precision, optim,
            manifest_hash, split, num_clips, starts_from) or published (title, file, sha256, paper, licence, matched,
            left_out, memory); of any other kind they are listed.
        encoders: {modality: Encoder}.
        folder: its name.
    """
    facts = config["facts"]
    sections = {
        f"{folder}": _what(config, encoders),
        "Use": f'```python\nimport avssl\n\nmodel = avssl.load("{folder}")\n'
        'features = model.encode("clip.mp4")\n```\n\n'
        "`features` holds a row for each of three clips spread over the file. `model.encoders` are the networks, "
        "`model.heads` what makes embeddings of their outputs, `model.transform` what makes their inputs of frames and "
        "samples.",
        "Input": _inputs(config, encoders),
        "Training": {"run": _of_run, "published": _of_published}.get(facts.get("kind"), _listed)(facts),
        "Limits": "Features for research: comparing, retrieving and classifying clips. They know what the training "
        "clips showed, biases included, and nothing was done against these. Clips of another length, size or rate than "
        "above are taken, how well was not measured. Quality is measured on labelled sets by tools/evaluate.py.",
        "Licence and source": _source(facts),
    }
    first, *others = sections.items()
    parts = [f"# {first[0]}", first[1], *(line for title, text in others for line in (f"## {title}", text))]
    return "\n\n".join(parts) + "\n"


def _what(config: Mapping[str, Any], encoders: nn.ModuleDict) -> str:
    rows = [f"Encoders written by avssl {avssl.__version__}.", ""]
    rows += ["| encoder | network | parameters | output |", "|---|---|---|---|"]
    for modality, encoder in encoders.items():
        count = sum(parameter.numel() for parameter in encoder.parameters())
        rows.append(f"| {modality} | {config['model'][modality]} | {count:,} | {encoder.dim} |")
    heads = [f"{modality} {sizes['out_dim']}" for modality, sizes in config["heads"].items()]
    rows += ["", f"Heads, and the dimensions of their embeddings: {', '.join(heads) if heads else 'none'}."]
    if config["classifier"]:
        classifier = config["classifier"]
        rows.append(
            f"Classifier of {len(classifier['classes'])} classes, on {classifier['stage']} of {classifier['modality']}."
        )
    return "\n".join(rows)


def _inputs(config: Mapping[str, Any], encoders: nn.ModuleDict) -> str:
    data, rows = config["data"], []
    if "video" in encoders:
        size, mean, std = data["size"], data["pixel_mean"], data["pixel_std"]
        rows.append(
            f"- Pictures: {data['num_frames']} frames at {data['fps']:g} a second, the centre crop as {size} x {size} "
            f"pixels; colours in [0, 1], less {mean}, divided by {std}."
        )
    if "audio" in encoders:
        bands = {"avid": f"{data['n_fft'] // 2 + 1} bins", "log_mel": f"{data['num_mels']} mel bands"}
        rows.append(
            f"- Sound: {data['audio_seconds']:g} s at {data['sample_rate']} Hz, mono; spectrogram "
            f"{data['spectrogram']} with {bands[data['spectrogram']]}, a step every {data['hop_seconds']:g} s."
        )
    return "\n".join(rows)


def _of_run(facts: Mapping[str, Any]) -> str:
    method, optim = facts["method"], facts["optim"]
    options = ", ".join(f"{name} {value}" for name, value in method.items() if name != "name")
    split = "all splits" if facts["split"] is None else f"split {facts['split']}"
    start = ", ".join(facts["starts_from"]) or "random weights"
    return "\n".join(
        (
            f"- Method: {method['name']} ({options or 'default options'}), from {start}; steps: {facts['steps']}.",
            f"- Clips: {facts['num_clips']}, {split}, of the manifest with hash {facts['manifest_hash'][:12]}.",
            f"- Optimiser: {optim['name']}, lr {optim['lr']:g}, weight decay {optim['weight_decay']:g}, schedule "
            f"{optim['schedule']}, {optim['epochs']} epochs planned; precision {facts['precision']}, seed "
            f"{facts['seed']}.",
        )
    )


def _of_published(facts: Mapping[str, Any]) -> str:
    rows = [
        f"- Converted from {facts['file']} (SHA-256 {facts['sha256']}), a checkpoint of {facts['title']}.",
        f"- {facts['matched']} entries taken, {len(facts['left_out'])} known ones left out. What it was trained "
        "on, its source says.",
    ]
    if facts["memory"]:
        names = ", ".join(f"{name} {shape}" for name, shape in facts["memory"].items())
        rows.append(
            f"- memory.safetensors: {names}. Rows belong to the files of the original training, in an order that the "
            "checkpoint does not tell, so no training starts from them."
        )
    return "\n".join(rows)


def _listed(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items()) or "Nothing was written down."


def _source(facts: Mapping[str, Any]) -> str:
    if facts.get("kind") == "published":
        return f"- Licence: {facts['licence']}.\n- Cite: {facts['paper']}."
    return (
        "- Licence: whoever trained it states it here. Clips, and weights that training started from, have terms of "
        "their own.\n- Cite the paper of the method: avssl/methods/ names it."
    )
