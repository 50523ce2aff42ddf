"""EMformerPipeline: what ``pipeline("image-to-image", ..., trust_remote_code=True)`` of transformers runs.

It takes a stack in one piece. Large stacks, in parts and by several orientations, are for ``emformer_hub.reconstruct``.
"""

from __future__ import annotations

from typing import Any

from transformers import Pipeline


class EMformerPipeline(Pipeline):
    """Stacks in, isotropic volumes out: ``pipe(stack, factor=10)``.

    Takes an array ``(z, y, x)``, or a list of them, and ``factor``, ``thickness``, ``mode`` and ``mask`` as
    ``reconstruct`` does; returns for each ``reconstruction`` and ``uncertainty``
    (:meth:`~emformer_hub.processing_emformer.EMformerProcessor.post_process`).
    """

    feature_extractor: Any
    _load_feature_extractor: Any = True
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_processor: Any = False

    def _sanitize_parameters(self, mask: Any = None, **geometry: Any) -> tuple[dict[str, Any], ...]:
        return {} if mask is None else {"mask": mask}, geometry, {}

    def preprocess(self, input_: Any, **given: Any) -> dict[str, Any]:
        inputs = self.feature_extractor(input_, given.get("mask"))
        return {"inputs": dict(inputs), "statistics": inputs.statistics}

    def _forward(self, input_tensors: dict[str, Any], **geometry: Any) -> Any:
        outputs = self.model(**input_tensors["inputs"], **geometry)
        return {"outputs": outputs, "statistics": input_tensors["statistics"]}

    def postprocess(self, model_outputs: Any, **given: Any) -> dict[str, Any]:
        (found,) = self.feature_extractor.post_process(model_outputs["outputs"], model_outputs["statistics"])
        return found
