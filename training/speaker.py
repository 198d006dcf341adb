"""Train `duet-tiny-speaker`: a speech detector and voice prints, with the distances that join voices into people.

    python -m training.speaker --out build/train/speaker/model

Voice prints come from a time-delay network with statistics pooling (x-vectors, Snyder et al. 2018). It is trained with
an additive angular margin (ArcFace, arXiv:1801.07698) to tell some 800 synthetic people apart. The speech detector is a
filter bank and three convolutions in the format of pyannote's segmentation, for one speaker at a time. Distances are
chosen on meetings of voices that training did not use. Training is seeded, and an interrupted run continues where it
stopped. On one of two busy cores it took 2.5 minutes for the people, 0.6 for the detector, 9 for the voice prints and 2
for the meetings.

Write to another folder than the shipped one. Compare the two with `evaluate.speaker` before you replace it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import kaldi_native_fbank
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_closing
from torch import Tensor, nn
from torch.nn import functional as F

from training import people, steps, voices
from training.evaluate import speaker as evaluate_speaker
from training.sentences import Writer

WORK: Final = Path("build/train/speaker")
PEOPLE_A_VARIANT, UTTERANCES = 6, 4
PRINT_WIDTH: Final = 96
MARGIN, SCALE = 0.2, 30.0
WINDOW: Final = 24_000
"""Samples that the detector hears at a time. It is also the shortest stretch that gets a voice print."""
HOP: Final = 160
CLUSTER_DISTANCE: Final = 1.0
"""Of 0.7 and 1.0, the one that split four development meetings into fewer clusters with the same purity."""
Features = NDArray[np.float32]


# Voice prints


class VoicePrint(nn.Module):
    """Maps log-mel features [B, T, 80] to unit vectors [B, PRINT_WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        shapes = ((80, 128, 5, 1), (128, 128, 3, 2), (128, 128, 3, 3), (128, 192, 1, 1))
        self.layers = nn.ModuleList(
            nn.Conv1d(i, o, size, dilation=apart, padding=size // 2 * apart) for i, o, size, apart in shapes
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(o) for _, o, _, _ in shapes)
        self.out = nn.Linear(2 * shapes[-1][1], PRINT_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.transpose(1, 2) / 3
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = norm(F.relu(layer(hidden)))
        mean = hidden.mean(-1)
        spread = torch.sqrt(((hidden - mean.unsqueeze(-1)) ** 2).mean(-1) + 1e-5)
        return F.normalize(self.out(torch.cat([mean, spread], 1)), dim=-1)


class Classes(nn.Module):
    """The voice print network and one direction per person. The loss demands an angle of `MARGIN` to all others."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.network = VoicePrint()
        self.directions = nn.Parameter(torch.randn(count, PRINT_WIDTH))

    def loss(self, features: Tensor, person: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy, and the share of prints that are nearest to their own person."""
        with torch.autocast("cpu", torch.bfloat16):
            prints = self.network(features)
        cosine = (F.normalize(prints.float(), dim=-1) @ F.normalize(self.directions, dim=-1).T).clamp(-0.999, 0.999)
        own = F.one_hot(person, len(self.directions)).bool()
        with_margin = torch.where(own, torch.cos(torch.acos(cosine) + MARGIN), cosine)
        return F.cross_entropy(SCALE * with_margin, person), (cosine.argmax(1) == person).float().mean()


def filterbank(samples: voices.Samples) -> Features:
    """Log-mel features (frames, 80) as sherpa-onnx computes them for voice prints: Povey windows, 20 to 7,600 Hz. The
    caller subtracts their mean."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    options.mel_opts.low_freq = 20
    options.mel_opts.high_freq = -400
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(voices.RATE, samples.tolist())
    bank.input_finished()
    return np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])


def make_variant(folder: Path, variant: str) -> Path:
    """Write one variant's file: clean samples for the detector, and features by person, half of them distorted."""
    target = folder / f"{variant}.npz"
    if target.exists():
        return target
    rng = random.Random(f"speaker {variant}")
    writer = Writer(rng)
    clean, features, person = [], [], []
    for number in range(PEOPLE_A_VARIANT):
        who = people.draw(variant, rng)
        for k in range(UTTERANCES):
            text = " ".join(writer.sentence(("zh", "en")[k % 2]).bare for _ in range(2))
            said = who.say(text, rng)
            clean.append((said * 32767).astype(np.int16))
            for size, tract in enumerate(people.TRACTS):
                heard = people.resized(said, tract)
                heard = voices.distort(heard, rng) if (k // 2 + size) % 2 else heard
                features.append(filterbank(heard).astype(np.float16))
                person.append(number * len(people.TRACTS) + size)
    folder.mkdir(parents=True, exist_ok=True)
    half = target.with_suffix(".half.npz")
    np.savez(
        half,
        clean=np.concatenate(clean),
        features=np.concatenate(features),
        frames=np.array([len(f) for f in features]),
        person=np.array(person),
    )
    half.replace(target)
    return target


def train_prints(paths: list[Path], work: Path, count_of_steps: int) -> VoicePrint:
    utterances: list[tuple[int, NDArray[np.float16]]] = []
    for number, path in enumerate(paths):
        with np.load(path) as found:
            ends = np.cumsum(found["frames"])
            rows = np.split(found["features"], ends[:-1])
            first = number * PEOPLE_A_VARIANT * len(people.TRACTS)
            utterances += [(first + int(p), row) for p, row in zip(found["person"], rows, strict=True)]
    model = Classes(len(paths) * PEOPLE_A_VARIANT * len(people.TRACTS))
    right: list[float] = []

    def loss_of_step(step: int) -> Tensor:
        rng = random.Random(steps.seed_of_step(step))
        length = rng.choice((90, 120, 150, 150, 220))
        rows, person = [], []
        for who, features in rng.sample(utterances, 16_000 // length):
            if len(features) < length:
                continue
            first = rng.randrange(len(features) - length + 1)
            row = features[first : first + length].astype(np.float32)
            rows.append(row - row.mean(0))
            person.append(who)
        loss, share = model.loss(torch.from_numpy(np.stack(rows)), torch.tensor(person))
        right.append(share.item())
        return loss

    def report(_: int) -> str:
        line = f"right {np.mean(right):.3f}"
        right.clear()
        return line

    steps.train(
        model, loss_of_step, steps=count_of_steps, checkpoint=work / "print.pt", peak_rate=3e-3, every=100,
        on_report=report,
    )  # fmt: skip
    return model.network


# The speech detector


class Detector(nn.Module):
    """Maps samples [B, 1, N] to log-probabilities [B, frames, 2] of silence and speech, a frame every `HOP` samples.

    The network also gets each band's level relative to its lowest level in the window, so that steady noise of any
    loudness is silence.
    """

    def __init__(self, bands: int = 24, width: int = 32) -> None:
        super().__init__()
        self.register_buffer("bank", _band_filters(bands))
        self.layers = nn.ModuleList(
            nn.Conv1d(i, width, 7, padding=3 * apart, dilation=apart)
            for i, apart in ((2 * bands, 1), (width, 2), (width, 4))
        )
        self.out = nn.Conv1d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        waves = F.conv1d(x, self.bank, stride=HOP, padding=200)
        real, imaginary = waves.chunk(2, 1)
        level = torch.log(real * real + imaginary * imaginary + 1e-8)
        level = F.avg_pool1d(level, 3, 1, 1)
        quiet = level.amin(-1, keepdim=True)
        hidden = torch.cat([(level + 9) / 4, (level - quiet) / 4], 1)
        for layer in self.layers:
            hidden = F.relu(layer(hidden))
        return self.out(hidden).transpose(1, 2).log_softmax(-1)


def _band_filters(bands: int) -> Tensor:
    """Windowed cosines and sines [2 * bands, 1, 400], equally spaced on the mel scale from 100 to 7,000 Hz."""
    mel = np.linspace(1127 * np.log1p(100 / 700), 1127 * np.log1p(7000 / 700), bands)
    hertz = 700 * np.expm1(mel / 1127)
    time_axis = np.arange(400) / voices.RATE
    window = np.hanning(400) / 200
    angle = 2 * np.pi * hertz[:, None] * time_axis
    return torch.from_numpy(np.concatenate([np.cos(angle), np.sin(angle)]) * window).float().unsqueeze(1)


def detector_batch(speech: list[NDArray[np.int16]], rng: random.Random) -> tuple[Tensor, Tensor]:
    """48 windows [48, 1, WINDOW] of people with pauses, a room and noise, and whether anyone speaks [48, frames]."""
    windows, labels = [], []
    for _ in range(8):
        pieces: list[voices.Samples] = [np.zeros(int(rng.uniform(0.1, 2.5) * voices.RATE), np.float32)]
        while sum(map(len, pieces)) < 8 * voices.RATE:
            said = rng.choice(speech)
            first = rng.randrange(max(1, len(said) - voices.RATE))
            said = said[first : first + int(rng.uniform(0.6, 4) * voices.RATE)].astype(np.float32) / 32767
            pieces += [
                said * 10 ** (rng.uniform(-10, 0) / 20),
                np.zeros(int(rng.uniform(0.1, 2.5) * voices.RATE), np.float32),
            ]
        clean = np.concatenate(pieces)
        spoken = speaks(clean)
        heard = people.surrounded(clean, rng)
        if rng.random() < 0.15:  # in use, zeros fill a window that is longer than the recording
            heard[clean_start(len(heard), rng) :] = 0
            spoken = spoken & (np.abs(heard[: len(spoken) * HOP].reshape(-1, HOP)).max(1) > 0)
        for _ in range(6):
            first = rng.randrange((len(clean) - WINDOW) // HOP)
            windows.append(heard[first * HOP : first * HOP + WINDOW])
            labels.append(spoken[first : first + WINDOW // HOP])
    return torch.from_numpy(np.stack(windows)).unsqueeze(1), torch.from_numpy(np.stack(labels)).long()


def clean_start(length: int, rng: random.Random) -> int:
    """The sample at which the zeros begin."""
    return rng.randrange(length // 2, length)


def speaks(clean: voices.Samples) -> NDArray[np.bool_]:
    """Whether each frame of `HOP` samples, without noise, is speech: it is loud, or in a gap of less than 0.2 s."""
    frames = np.abs(clean[: len(clean) // HOP * HOP].reshape(-1, HOP)).max(1) > people.LOUD
    return binary_closing(np.pad(frames, 20), np.ones(20))[20:-20] | frames


def train_detector(paths: list[Path], work: Path, count_of_steps: int) -> Detector:
    model = Detector()
    speech = []
    for path in paths:
        with np.load(path) as found:
            speech += np.array_split(found["clean"], PEOPLE_A_VARIANT * UTTERANCES)

    def loss_of_step(step: int) -> Tensor:
        windows, labels = detector_batch(speech, random.Random(steps.seed_of_step(step)))
        return F.nll_loss(model(windows)[:, : labels.shape[1]].flatten(0, 1), labels.flatten())

    steps.train(
        model, loss_of_step, steps=count_of_steps, checkpoint=work / "detector.pt", peak_rate=3e-3, every=50, warm_up=30
    )
    return model


# Export


def export(
    network: nn.Module, example: Tensor, path: Path, names: tuple[str, str], metadata: Mapping[str, Any]
) -> None:
    """Write the network as ONNX with variable batch and length, and with the metadata that sherpa-onnx reads."""
    axes = {"N": 0, "T": 2 if example.dim() == 3 and example.shape[1] == 1 else 1}
    half = path.with_suffix(".half")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns that it is the old one
        torch.onnx.export(
            network.eval(), (example,), str(half), opset_version=17, dynamo=False,
            input_names=[names[0]], output_names=[names[1]],
            dynamic_axes={names[0]: {axis: name for name, axis in axes.items()}, names[1]: {0: "N"}},
        )  # fmt: skip
    model = onnx.load(str(half))
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, str(value)
    onnx.save(model, str(half))
    half.replace(path)


def export_both(detector: Detector, prints: VoicePrint, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    export(
        detector, torch.zeros(1, 1, WINDOW), out / "seg.onnx", ("x", "y"),
        {"num_speakers": 1, "powerset_max_classes": 1, "num_classes": 2, "sample_rate": voices.RATE, "window_size": WINDOW,
         "receptive_field_size": HOP, "receptive_field_shift": HOP, "model_type": "pyannote-segmentation-3.0"},
    )  # fmt: skip
    export(
        prints, torch.zeros(1, 120, 80), out / "spk.onnx", ("x", "print"),
        {"framework": "wespeaker", "language": "Chinese and English", "output_dim": PRINT_WIDTH, "sample_rate": voices.RATE,
         "normalize_samples": 1, "feature_normalize_type": "global-mean", "url": ""},
    )  # fmt: skip


def choose_rules(meetings: Path, out: Path) -> None:
    """Write speaker.toml: the rules for joining voices that have the lowest error on the development meetings."""
    for number in range(people.DEVELOPMENT_MEETINGS):
        people.write(number, voices.DEVELOPMENT_VARIANTS, meetings)
    rules, found = evaluate_speaker.choose(out, CLUSTER_DISTANCE, list(evaluate_speaker.read(meetings)))
    print(json.dumps(found), flush=True)
    lines = (
        f"# Chosen on {found['meetings']} synthetic meetings of 2 to 5 voices that training did not use:",
        f"# DER {found['der']:.1%} (0.25 s collar), the number of people is right in {found['number_right']}.",
        "",
        "# Clusters of 1.5 s pieces. The distance is small: it splits a person rather than joining two.",
        f"threshold = {CLUSTER_DISTANCE}",
        "# Clusters whose voice prints (up to 20 s) are nearer than this are one person.",
        f"same_voice_distance = {rules.same_voice_distance}",
        "# A voice that speaks less becomes one of the others, because its print is unreliable.",
        f"min_speaker_seconds = {rules.min_speaker_seconds}",
        "# The model hears 1.5 s at a time. Shorter changes of speaker within speech are noise.",
        f"min_turn_seconds = {rules.min_turn_seconds}",
    )
    (out / "speaker.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for data and checkpoints")
    parser.add_argument("--steps", type=int, default=1500, help="steps that train the voice prints")
    parser.add_argument("--detector-steps", type=int, default=300, help="steps that train the speech detector")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(7)
    began = time.monotonic()
    paths = []
    for variant in voices.TRAIN_VARIANTS:
        paths.append(make_variant(options.work / "voices", variant))
        print(
            f"{len(paths)}/{len(voices.TRAIN_VARIANTS)} variants, {(time.monotonic() - began) / 60:.1f} min", flush=True
        )
    detector = train_detector(paths, options.work, options.detector_steps)
    prints = train_prints(paths, options.work, options.steps)
    export_both(detector, prints, options.out)
    choose_rules(options.work / "development", options.out)
    print(f"{options.out}: {sum(f.stat().st_size for f in options.out.glob('*.onnx')) / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
