"""Images of a request become `VisionInputs`: they run through the model's vision encoder."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from PIL import Image

from duet.errors import InvalidRequest
from engine.worker.model import Loaded
from engine.worker.runtime.vision import VisionInputs, uses_mrope

_SLICEABLE = frozenset({"inputs_embeds", "position_ids", "rope_deltas", "visual_pos_masks", "deepstack_visual_embeds"})
_IGNORABLE = frozenset({"attention_mask"})
_WHOLE_ONLY = frozenset({"attention_mask_4d", "per_layer_inputs"})


def _take_positions(language_model: Any, found: dict[str, Any]) -> None:
    """Put the M-RoPE positions of the prompt that was just embedded into `found`.

    Some models return them, others leave them in state of their own. That state is cleared in any case: what one image request
    left there changed the answers of later text requests.
    """
    for attribute, name in (("_position_ids", "position_ids"), ("_rope_deltas", "rope_deltas")):
        left = getattr(language_model, attribute, None)
        if left is not None:
            found.setdefault(name, left)
            setattr(language_model, attribute, None)


def _first_item(array: Any) -> int:
    return int(array.reshape(-1)[0].item())


def image_tokens(loaded: Loaded, images: list[Image.Image]) -> int:
    """How many tokens the images become, where the model's processor can tell before its work; else 0."""
    from mlx_vlm.utils import estimate_num_image_tokens

    try:
        return sum(estimate_num_image_tokens(loaded.processor, image.height, image.width) for image in images)
    except NotImplementedError:
        return 0
    except ValueError as error:
        raise _refused(error) from error


def _refused(error: Exception) -> InvalidRequest:
    return InvalidRequest(f"the model's processor refused an image: {error}", param="messages")


def prepare_images(loaded: Loaded, prompt: str, images: list[Image.Image]) -> tuple[tuple[int, ...], VisionInputs]:
    """Token ids of `prompt` with every image expanded to its tokens, and the inputs that go with them. Runs the vision encoder.

    Raises `InvalidRequest` for images that the model's own processor refuses, and for models that cannot run with images here.
    """
    from mlx_vlm.utils import prepare_inputs

    try:
        expanded = prepare_inputs(
            loaded.processor, images=images, prompts=prompt, image_token_index=loaded.image_token_id
        )
    except (ValueError, ArithmeticError) as error:
        raise _refused(error) from error
    inputs = dict(expanded)
    ids = inputs.pop("input_ids")
    mask, pixels = inputs.pop("attention_mask", None), inputs.pop("pixel_values", None)
    if pixels is None:
        raise InvalidRequest("this model's processor did not take the image", param="messages")
    features = loaded.model.get_input_embeddings(ids, pixels, mask=mask, **inputs)
    found = {name: value for name, value in vars(features).items() if value is not None}
    _take_positions(loaded.model.language_model, found)
    kind = loaded.config.get("model_type")
    if unknown := set(found) - _SLICEABLE - _IGNORABLE - _WHOLE_ONLY:
        raise InvalidRequest(
            f"images are not supported for {kind} yet (it needs {', '.join(sorted(unknown))})", param="messages"
        )
    tokens = tuple(ids[0].tolist())
    positions, delta = found.get("position_ids"), found.get("rope_deltas")
    if (positions is not None) != uses_mrope(loaded.model.language_model):
        raise InvalidRequest(f"images are not supported for {kind} yet (unknown positions)", param="messages")
    if positions is not None and positions.ndim == 2:
        positions = mx.broadcast_to(positions[None], (3, *positions.shape))
    deepstack, masks = found.get("deepstack_visual_embeds"), found.get("visual_pos_masks")
    whole = {name: found[name] for name in _WHOLE_ONLY if name in found}
    vision = VisionInputs(
        embeds=found["inputs_embeds"],
        positions=positions,
        rope_delta=0 if delta is None else _first_item(delta),
        visual=() if masks is None else tuple(masks.reshape(-1).tolist()),
        deepstack=() if deepstack is None else tuple(deepstack),
        whole=whole or None,
    )
    mx.eval(vision.embeds)
    return tokens, vision
