"""Stage 3: who speaks when."""

from __future__ import annotations

from duet.wire import SpeakerTurn
from pipelines.meeting.context import Context
from speech.diarizers.sherpa import SherpaDiarizer, find_diarizer

VERSION = 1


async def diarize(context: Context, done: dict[str, str]) -> str:
    """The artifact is a list of `SpeakerTurn`. Without speaker models it is empty, and a warning says so."""
    model_dir = find_diarizer(context.settings)
    speakers = context.request.options.speakers
    key = context.artifacts.key("diarize", "turns", done["decode"], done["segment"], speakers, str(model_dir), VERSION)
    if context.artifacts.read(key, list[SpeakerTurn]) is not None:
        return key
    has_speech = bool(context.artifacts.read(done["segment"], list[tuple[float, float]]))
    turns: list[SpeakerTurn] = []
    if model_dir is None:
        context.warn("no speaker models are installed ($DUET_HOME/models/speaker): speakers are not told apart")
    elif has_speech:
        diarizer = SherpaDiarizer(model_dir)
        try:
            pcm = context.artifacts.path(done["decode"], ".pcm")
            turns = await diarizer.diarize(pcm, speakers=speakers, on_progress=context.report)
        finally:
            await diarizer.close()
    context.artifacts.write(key, turns)
    return key
