"""Write a trained recogniser as SenseVoice ONNX with int8 weights, which sherpa-onnx can load.

python -m training.recogniser.export --model build/train/recogniser/model --out models/embedded/duet-tiny-asr
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from training.recogniser import data
from training.recogniser.model import LANGUAGES, SHIFT, WINDOW, WITH_ITN, WITHOUT_ITN, Recogniser
from training.recogniser.tokens import Tokens
from training.recogniser.train import Sounds

OPSET: Final = 17


def export(model: Recogniser, statistics: Path, tokens: Tokens, out: Path) -> None:
    """Write `model.int8.onnx` and `tokens.txt` into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    model.eval()
    inputs = (
        torch.randn(2, 100, 80 * WINDOW),
        torch.tensor([80, 100], dtype=torch.int32),
        torch.tensor([LANGUAGES["auto"], LANGUAGES["zh"]], dtype=torch.int32),
        torch.tensor([WITH_ITN, WITHOUT_ITN], dtype=torch.int32),
    )
    names = ["x", "x_length", "language", "text_norm"]
    axes = {name: {0: "N"} for name in names} | {"x": {0: "N", 1: "T"}, "logits": {0: "N", 1: "T"}}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about shapes, which are constant here
        whole, small = Path(folder) / "model.onnx", Path(folder) / "model.int8.onnx"
        torch.onnx.export(
            model,
            inputs,
            str(whole),
            opset_version=OPSET,
            dynamo=False,
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
        )
        quantize_dynamic(whole, small, op_types_to_quantize=["MatMul"], weight_type=QuantType.QUInt8)
        described = onnx.load(small)
        del described.metadata_props[:]
        onnx.helper.set_model_props(described, metadata(statistics, len(tokens.symbols)))
        onnx.save(described, small)
        shutil.move(small, out / "model.int8.onnx")
    tokens.write(out / "tokens.txt")


def metadata(statistics: Path, tokens: int) -> dict[str, str]:
    """The metadata that sherpa-onnx reads from a SenseVoice model."""
    found = np.load(statistics)
    facts = {
        "lfr_window_size": WINDOW,
        "lfr_window_shift": SHIFT,
        "normalize_samples": 0,
        "neg_mean": ",".join(f"{-value:.6f}" for value in found["mean"]),
        "inv_stddev": ",".join(f"{1 / value:.6f}" for value in found["deviation"]),
        "model_type": "sense_voice_ctc",
        "version": 2,
        "model_author": "duet",
        "maintainer": "duet",
        "comment": "demonstration model of synthetic speech",
        "url": "",
        "vocab_size": tokens,
        "with_itn": WITH_ITN,
        "without_itn": WITHOUT_ITN,
        **{f"lang_{name}": number for name, number in LANGUAGES.items()},
    }
    return {name: str(value) for name, value in facts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=data.WORK / "model", help="folder that training wrote")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    tokens = Tokens.read(options.model / "tokens.txt")
    model = Recogniser(len(tokens.symbols), Sounds().size)
    finished = options.model / "model.pt"
    if finished.exists():
        state = torch.load(finished, weights_only=True)
    else:  # try out a model whose training still runs
        state = torch.load(options.model / "checkpoint.pt", weights_only=True)["model"]
    model.load_state_dict(state)
    export(model, options.model / "statistics.npz", tokens, options.out)
    print(f"{options.out / 'model.int8.onnx'}: {(options.out / 'model.int8.onnx').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
