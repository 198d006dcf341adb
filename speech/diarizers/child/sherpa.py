"""sherpa-onnx's diarization in its own process: it holds the interpreter's lock for its whole run.

`python -m speech.diarizers.child.sherpa --fd N --model-dir DIR --threshold T`
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from duet.channel import BlockingChannel, ChannelClosed
from speech import onnx_metadata
from speech.decoding.pcm import open_pcm
from speech.diarizers.child.messages import Diarize, Diarized, DiarizeFailed, LocalTurn
from speech.splitter import SAMPLE_RATE

SEGMENTATION_METADATA = frozenset(
    (
        *("sample_rate", "window_size", "receptive_field_size", "receptive_field_shift"),
        *("num_speakers", "powerset_max_classes", "num_classes"),
    )
)
VOICE_METADATA = frozenset(("framework", "language", "output_dim", "sample_rate"))
"""The keys that sherpa-onnx reads of the two models; it ends the process when one is missing."""
VOICE_SECONDS = 20.0
"""So many seconds of one speaker are enough for a voice print."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="speech.diarizers.child.sherpa", description="Who speaks when.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--threshold", type=float, default=0.5)
    arguments = parser.parse_args()
    channel: BlockingChannel[Diarize] = BlockingChannel.from_fd(arguments.fd, Diarize)
    try:
        while True:
            request = channel.receive()
            try:
                channel.send(diarize(arguments.model_dir, arguments.threshold, request))
            except (RuntimeError, OSError, ValueError) as error:
                channel.send(DiarizeFailed(request.id, str(error)))
    except ChannelClosed:
        return 0


def diarize(model_dir: Path, threshold: float, request: Diarize) -> Diarized:
    """One window's turns and voices. Raises ValueError, OSError or RuntimeError for unusable models or audio."""
    import sherpa_onnx

    onnx_metadata.require(model_dir / "seg.onnx", SEGMENTATION_METADATA, kind="speaker segmentation model")
    onnx_metadata.require(model_dir / "spk.onnx", VOICE_METADATA, kind="voice print model")
    samples = open_pcm(Path(request.pcm))[request.first : request.last].astype(np.float32) / 32768.0
    turns = _turns(model_dir, sherpa_onnx.FastClusteringConfig(num_clusters=-1, threshold=threshold), samples)
    if request.speakers is not None and len({turn.speaker for turn in turns}) < request.speakers:
        # A forced number gives worse clusters than the threshold, so it is the second choice. Too many clusters do no harm:
        # they are joined by their voice prints.
        turns = _turns(model_dir, sherpa_onnx.FastClusteringConfig(num_clusters=request.speakers), samples)
    extractor = sherpa_onnx.SpeakerEmbeddingExtractor(_voice_config(model_dir))
    return Diarized(request.id, tuple(turns), voices(extractor, samples, turns))


def _turns(model_dir: Path, clustering: Any, samples: np.ndarray[Any, np.dtype[np.float32]]) -> list[LocalTurn]:
    import sherpa_onnx

    config = sherpa_onnx.OfflineSpeakerDiarizationConfig(
        segmentation=sherpa_onnx.OfflineSpeakerSegmentationModelConfig(
            pyannote=sherpa_onnx.OfflineSpeakerSegmentationPyannoteModelConfig(model=str(model_dir / "seg.onnx"))
        ),
        embedding=_voice_config(model_dir),
        clustering=clustering,
        min_duration_on=0.2,
        min_duration_off=0.3,
    )
    if not config.validate():
        raise ValueError(f"the speaker models in {model_dir.name} are not usable")
    result = sherpa_onnx.OfflineSpeakerDiarization(config).process(samples).sort_by_start_time()
    return [LocalTurn(turn.start, turn.end, turn.speaker) for turn in result]


def _voice_config(model_dir: Path) -> Any:
    import sherpa_onnx

    return sherpa_onnx.SpeakerEmbeddingExtractorConfig(model=str(model_dir / "spk.onnx"), num_threads=1)


def voices(
    extractor: Any, samples: np.ndarray[Any, np.dtype[np.float32]], turns: list[LocalTurn]
) -> tuple[tuple[float, ...], ...]:
    """One voice print a speaker, from up to 20 s of its longest turns; empty for less than half a second of speech."""
    prints: list[tuple[float, ...]] = []
    for speaker in range(1 + max((turn.speaker for turn in turns), default=-1)):
        pieces, seconds = [], 0.0
        for turn in sorted((t for t in turns if t.speaker == speaker), key=lambda t: t.start - t.end):
            pieces.append(samples[int(turn.start * SAMPLE_RATE) : int(turn.end * SAMPLE_RATE)])
            seconds += turn.end - turn.start
            if seconds >= VOICE_SECONDS:
                break
        if seconds < 0.5:
            prints.append(())
            continue
        stream = extractor.create_stream()
        stream.accept_waveform(SAMPLE_RATE, np.concatenate(pieces)[: int(VOICE_SECONDS * SAMPLE_RATE)])
        stream.input_finished()
        vector = np.asarray(extractor.compute(stream), dtype=np.float64)
        prints.append(tuple((vector / max(float(np.linalg.norm(vector)), 1e-12)).tolist()))
    return tuple(prints)


if __name__ == "__main__":
    sys.exit(main())
