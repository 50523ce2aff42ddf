"""EMformerModel: what holds for any weights, and what transformers expects of a model."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor

from emformer_hub import layers_emformer
from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.interpolation import fill_masked_rows, interpolate
from emformer_hub.losses import reconstruction_loss
from emformer_hub.modeling_emformer import EMformerModel, EMformerOutput, EMformerPreTrainedModel
from emformer_hub.modes import MODES
from emformer_hub.processing_emformer import EMformerProcessor

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "attention_every": 1,
    "num_attention_heads": 2,
    "window_size": (2, 2, 4),
    "num_basis": 6,
    "num_scale_basis": 3,
    "condition_size": 8,
}
FACTORS = [1, 1.5, 4, 6.7, 8.333, 16]


def tiny_config(**changes: object) -> EMformerConfig:
    return EMformerConfig(**{**TINY, **changes})


def build(seed: int = 0, **changes: object) -> EMformerModel:
    """A model as if trained: no parameter is at the zero that some of them start from."""
    torch.manual_seed(seed)
    model = EMformerModel(tiny_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def clip(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mask_rows(sections: Tensor, *rows: int) -> Tensor:
    mask = torch.zeros(1, 1, sections.shape[2], 1, dtype=torch.bool)
    mask[:, :, rows] = True
    return mask


def assert_same(found: EMformerOutput, expected: EMformerOutput, atol: float = 0.0) -> None:
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, atol=atol, rtol=0)
    torch.testing.assert_close(found.scale, expected.scale, atol=atol, rtol=0)


def assert_same_weights(found: EMformerModel, expected: EMformerModel) -> None:
    weights = found.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(weights[name], weight, atol=0, rtol=0, msg=name)


@pytest.fixture(scope="module")
def model() -> EMformerModel:
    return build()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# --- what a reconstruction is ------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.tuples(st.integers(1, 2), *[st.integers(1, 9)] * 3), st.floats(1, 16), st.floats(0.05, 1))
def test_any_clip_and_any_factor(shape: tuple[int, ...], factor: float, thickness: float) -> None:
    output = build()(clip(*shape), factor, thickness=thickness, frame_spacing=3.7)
    batch, frames, rows, columns = shape
    assert output.reconstruction.shape == (batch, frames, SectionModel(factor).num_planes(rows), columns)
    assert output.scale.shape == output.reconstruction.shape
    assert output.reconstruction.isfinite().all()
    assert (output.scale > 0).all() and output.scale.isfinite().all()


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_any_patch_size_takes_any_columns(patch_size: int) -> None:
    model = build(patch_size=patch_size)
    for columns in (1, 3, 16, 17):
        assert model(clip(1, 2, 4, columns), 2).reconstruction.shape == (1, 2, 8, columns)


@pytest.mark.parametrize("thickness", [1.0, 0.3])
@pytest.mark.parametrize("factor", FACTORS)
def test_the_network_adds_to_cubic_interpolation(factor: float, thickness: float) -> None:
    model = build()
    model.decoder.coefficients.weight.zero_()
    model.decoder.coefficients.bias.zero_()
    sections = clip(2, 3, 5, 11)
    output = model(sections, factor, thickness=thickness)
    geometry = SectionModel(factor, thickness)
    for found, frames in zip(output.reconstruction, sections, strict=True):
        cubic = interpolate(frames.transpose(0, 1).numpy(), geometry, "cubic")
        np.testing.assert_allclose(found.transpose(0, 1), cubic, atol=1e-5)


@pytest.mark.parametrize("factor", FACTORS)
def test_some_positions_are_the_same_rows_of_the_whole(model: EMformerModel, factor: float) -> None:
    sections, geometry = clip(1, 3, 6, 8), SectionModel(factor)
    positions = geometry.plane_positions(geometry.num_planes(6))
    whole = model(sections, factor)
    for chosen in (slice(None), slice(1, 4), slice(0, None, 2), slice(-1, None)):
        part = model(sections, factor, positions=positions[chosen])
        torch.testing.assert_close(part.reconstruction, whole.reconstruction[:, :, chosen], atol=1e-5, rtol=0)
        torch.testing.assert_close(part.scale, whole.scale[:, :, chosen], atol=1e-5, rtol=1e-5)


def test_positions_follow_the_imaged_part(model: EMformerModel) -> None:
    """An off-centre section is the same network at shifted positions, not a shifted result."""
    sections, geometry = clip(1, 2, 4, 8), SectionModel(4, 0.25, 0)
    positions = geometry.plane_positions(16)
    assert positions[0] == 0  # the first plane is the one that was imaged
    output = model(sections, 4, thickness=0.25, positions=positions)
    assert output.reconstruction.shape == (1, 2, 16, 8)
    assert not torch.allclose(output.reconstruction, model(sections, 4, thickness=0.25).reconstruction, atol=1e-3)


def test_the_network_knows_factor_thickness_and_frame_spacing(model: EMformerModel) -> None:
    sections, positions = clip(1, 2, 4, 8), [0.0, 0.5, 1.0]
    plain = model(sections, 4, positions=positions).reconstruction
    for changed in ({"factor": 5}, {"thickness": 0.5}, {"frame_spacing": 4}):
        other = model(sections, **{"factor": 4, **changed}, positions=positions).reconstruction
        assert (other - plain).abs().max() > 1e-4, changed


@pytest.mark.parametrize("fill", [0.0, 1e6, float("nan")])
def test_what_is_masked_has_no_influence(model: EMformerModel, fill: float) -> None:
    sections = clip(2, 3, 7, 11)
    mask = mask_rows(sections, 0, 3, 4)
    expected = model(sections, 6.7, section_mask=mask)
    assert_same(model(sections.masked_fill(mask, fill), 6.7, section_mask=mask), expected)
    assert expected.reconstruction.isfinite().all()


def test_masks_can_differ_between_clips(model: EMformerModel) -> None:
    sections = clip(2, 3, 6, 8)
    masks = [mask_rows(sections, 1), mask_rows(sections, 4, 5)]
    together = model(sections, 4, section_mask=torch.cat(masks))
    for i, mask in enumerate(masks):
        alone = model(sections[i : i + 1], 4, section_mask=mask)
        torch.testing.assert_close(together.reconstruction[i : i + 1], alone.reconstruction, atol=1e-5, rtol=0)


def test_the_network_is_told_what_is_masked(model: EMformerModel) -> None:
    sections = clip(1, 3, 6, 8)
    mask = mask_rows(sections, 2)
    filled = fill_masked_rows(sections, mask)
    told = model(sections, 4, section_mask=mask).reconstruction
    assert not torch.allclose(told, model(filled, 4).reconstruction, atol=1e-3)
    nothing_masked = model(sections, 4, section_mask=mask_rows(sections))
    assert_same(nothing_masked, model(sections, 4), atol=1e-6)


def test_masked_rows_are_filled_from_the_nearest_measured_ones() -> None:
    hole = float("nan")
    rows = torch.tensor([[hole, 2, hole, hole, 8, 7, hole, hole], [1, hole, 3, hole, hole, hole, hole, 13]])
    sections = rows[None, :, :, None].expand(1, 2, 8, 3)  # two frames, each with holes of its own
    filled = fill_masked_rows(sections, sections.isnan())
    expected = torch.tensor([[2.0, 2, 4, 6, 8, 7, 7, 7], [1, 2, 3, 5, 7, 9, 11, 13]])
    torch.testing.assert_close(filled, expected[None, :, :, None].expand(1, 2, 8, 3))


def test_where_nothing_is_measured_the_mean_is_filled_in(model: EMformerModel) -> None:
    sections = torch.full((1, 2, 4, 6), float("nan"))
    mask = mask_rows(sections, 0, 1, 2, 3)
    assert (fill_masked_rows(sections, mask) == 0).all()
    assert model(sections, 4, section_mask=mask).reconstruction.isfinite().all()


def test_the_scale_stays_positive_and_finite_whatever_the_input(model: EMformerModel) -> None:
    loud = build()
    loud.decoder.coefficients.weight *= 1e4
    for scale in (model(1e4 * clip(1, 2, 4, 8), 4).scale, loud(clip(1, 2, 4, 8), 4).scale):
        assert (scale > 0).all() and scale.isfinite().all()


# --- how it is computed does not matter ------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_output(model: EMformerModel) -> None:
    assert_same(model(clip(1, 3, 5, 11), 6.7), model(clip(1, 3, 5, 11), 6.7))


def test_a_batch_is_its_clips(model: EMformerModel) -> None:
    sections = clip(3, 3, 5, 11)
    together = model(sections, 8.333)
    alone = [model(sections[i : i + 1], 8.333) for i in range(3)]
    torch.testing.assert_close(together.reconstruction, torch.cat([o.reconstruction for o in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(together.scale, torch.cat([o.scale for o in alone]), atol=1e-5, rtol=1e-5)


def test_eager_equals_fused_attention() -> None:
    model, sections = build(), clip(2, 5, 6, 16)
    assert model.config._attn_implementation == "sdpa"  # the fast one is the default
    fused = model(sections, 4)
    model.set_attn_implementation("eager")
    assert_same(model(sections, 4), fused, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("cached_tokens", [1, 100, 10**9])
def test_frames_at_a_time_equal_all_at_once(monkeypatch: pytest.MonkeyPatch, cached_tokens: int, batch: int) -> None:
    model, sections = build(num_hidden_layers=3), clip(batch, 9, 5, 11)
    arguments = {"factor": 6.7, "section_mask": mask_rows(sections, 2)}
    with torch.enable_grad():
        expected = model(sections, **arguments)
    monkeypatch.setattr(layers_emformer, "CACHED_TOKENS", cached_tokens)
    assert_same(model(sections, **arguments), expected, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 13), st.integers(1, 9), st.integers(1, 21)),
    cached_tokens=st.sampled_from([1, 30, 10**9]),
    factor=st.sampled_from([1.0, 4.0, 6.7]),
    masked=st.booleans(),
    data=st.data(),
)
def test_a_stream_yields_what_the_whole_clip_gives(
    shape: tuple[int, int, int, int], cached_tokens: int, factor: float, masked: bool, data: st.DataObject
) -> None:
    model, sections = build(num_hidden_layers=4, attention_every=1), clip(*shape)
    arguments = {"factor": factor, "section_mask": mask_rows(sections, shape[2] // 2) if masked else None}
    with torch.enable_grad():
        whole = model(sections, **arguments)
    frames, columns = (
        slice(start, data.draw(st.integers(start + 1, length)))
        for length in (shape[1], shape[3])
        for start in [data.draw(st.integers(0, length - 1))]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers_emformer, "CACHED_TOKENS", cached_tokens)
        parts = list(model.stream(sections, **arguments, inside=(frames, columns)))
    assert [frame for place, _, _ in parts for frame in range(frames.stop - frames.start)[place]] == list(
        range(frames.stop - frames.start)
    )
    for index, expected in ((1, whole.reconstruction), (2, whole.scale)):
        found = torch.cat([part[index] for part in parts], 1)
        torch.testing.assert_close(found, expected[:, frames, :, columns].detach(), atol=1e-5, rtol=1e-5)


def test_a_stream_needs_the_memory_of_a_few_frames() -> None:
    model = build()
    peaks = []
    for frames in (64, 256):
        sections = clip(1, frames, 8, 256)
        with torch.profiler.profile(profile_memory=True) as profile, torch.inference_mode():
            for _ in model.stream(sections, 4):
                pass
        peaks.append(peak_bytes(profile) - 6 * sections.nbytes)
    assert peaks[1] < 1.2 * peaks[0]


def peak_bytes(profile: torch.profiler.profile) -> int:
    """The most bytes that torch held at once, of what it took during a profile."""
    changes = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    return max(itertools.accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())))


@pytest.mark.parametrize(("every", "attending"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2])])
def test_one_layer_in_so_many_attends(every: int, attending: list[int]) -> None:
    model = build(num_hidden_layers=4, attention_every=every)
    assert [i for i, layer in enumerate(model.layers) if layer.attention is not None] == attending
    model.set_attn_implementation("eager")
    assert len(model(clip(1, 4, 6, 16), 4, output_attentions=True).attentions) == len(attending)


def test_activation_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        sections = clip(2, 3, 5, 11)
        with torch.enable_grad():
            output = model(sections, 6.7, section_mask=mask_rows(sections, 2))
            loss = output.reconstruction.square().mean() + output.scale.log().square().mean()
            loss.backward()
        gradients.append({"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}})
    plain, checkpointed = gradients
    for name, gradient in plain.items():
        assert gradient is not None and gradient.abs().max() > 0, f"{name} learns nothing"
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_weights(model: EMformerModel, dtype: torch.dtype) -> None:
    half, sections = build().to(dtype), clip(1, 3, 5, 11)
    output = half(sections, 6.7, section_mask=mask_rows(sections, 1))
    expected = model(sections, 6.7, section_mask=mask_rows(sections, 1))
    assert output.reconstruction.dtype == output.scale.dtype == torch.float32
    assert_same(output, expected, atol=0.1)


def test_mixed_precision_leaves_the_interpolation_exact() -> None:
    model, sections = build(), clip(1, 3, 5, 11)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(sections, 4)
    assert_same(mixed, model(sections, 4), atol=0.1)
    model.decoder.coefficients.weight.zero_()
    model.decoder.coefficients.bias.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(sections, 4)
    torch.testing.assert_close(mixed.reconstruction, model(sections, 4).reconstruction, atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [4, 8.333])
def test_exported_equals_eager(model: EMformerModel, factor: float) -> None:
    sections = clip(1, 3, 5, 11)
    arguments = {"sections": sections, "factor": factor, "section_mask": mask_rows(sections, 2)}
    exported = torch.export.export(model, (), arguments, strict=False).module()
    other = {**arguments, "sections": clip(1, 3, 5, 11, seed=2)}
    assert_same(exported(**other), model(**other), atol=1e-6)


# --- what transformers expects -----------------------------------------------------------------------------------


def test_a_tuple_holds_what_the_output_holds(model: EMformerModel) -> None:
    sections = clip(1, 2, 4, 8)
    output = model(sections, 4)
    assert list(output) == ["reconstruction", "scale"]
    as_tuple = model(sections, 4, return_dict=False)
    assert isinstance(as_tuple, tuple)
    for found, expected in zip(as_tuple, output.values(), strict=True):
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_hidden_states_and_attentions() -> None:
    model = build()
    model.set_attn_implementation("eager")
    output = model(clip(2, 4, 6, 16), 4, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 4, 6, 8, 16)] * 3
    # 2x2x4 tokens a window; of (4, 6, 8) tokens, the shifted windows leave half a window out at each border
    assert [tuple(weights.shape) for weights in output.attentions] == [(2 * 12, 2, 16, 16), (2 * 2, 2, 16, 16)]
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_saved_equals_loaded(model: EMformerModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded, info = EMformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not loaded.training
    assert {name: getattr(loaded.config, name) for name in TINY} == TINY
    assert_same_weights(loaded, model)
    assert_same(loaded(clip(1, 3, 5, 11), 6.7), model(clip(1, 3, 5, 11), 6.7), atol=1e-5)


def test_colleagues_may_read_what_is_saved(model: EMformerModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_weights_in_several_files_load_as_one(model: EMformerModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = EMformerModel.from_pretrained(tmp_path)
    assert_same_weights(loaded, model)


def test_weights_load_in_the_dtype_asked_for(model: EMformerModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert EMformerModel.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_missing_weights_start_as_in_a_new_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading builds on the meta device: whatever initialisation does not know comes back as garbage."""
    initialise = EMformerModel._init_weights

    def seeded(self: EMformerModel, module: torch.nn.Module) -> None:
        torch.manual_seed(0)  # the two ways of building draw other random numbers in between
        initialise(self, module)

    monkeypatch.setattr(EMformerModel, "_init_weights", seeded)
    new = EMformerModel(tiny_config())
    assert_same_weights(EMformerModel.from_pretrained(None, config=tiny_config(), state_dict={}), new)


def test_a_model_from_the_meta_device_works() -> None:
    with torch.device("meta"):
        model = EMformerModel(tiny_config())
    model = model.to_empty(device="cpu").eval()
    model.init_weights()
    fresh = EMformerModel(tiny_config())
    for name, buffer in fresh.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), buffer, atol=0, rtol=0)
    output = model(clip(1, 3, 5, 11), 6.7)
    assert output.reconstruction.isfinite().all() and output.scale.isfinite().all()


def test_an_untrained_model_is_close_to_interpolation() -> None:
    torch.manual_seed(0)
    sections = clip(1, 4, 6, 16)
    output = EMformerModel(tiny_config()).eval()(sections, 4)
    cubic = interpolate(sections[0].transpose(0, 1).numpy(), SectionModel(4), "cubic")
    error = output.reconstruction[0].transpose(0, 1).numpy() - cubic
    assert 0 < np.abs(error).mean() < 0.2


def test_weights_of_other_sizes_are_refused_unless_asked_for(model: EMformerModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    wider = tiny_config(num_basis=12)
    with pytest.raises(InputError, match="the weights do not fit the config: mismatched keys"):
        EMformerModel.from_pretrained(tmp_path, config=wider)
    loaded = EMformerModel.from_pretrained(tmp_path, config=wider, ignore_mismatched_sizes=True)
    torch.testing.assert_close(loaded.embeddings.projection.weight, model.embeddings.projection.weight)
    assert loaded(clip(1, 2, 4, 8), 4).reconstruction.isfinite().all()


@pytest.mark.parametrize("kind", ["missing", "unexpected"])
def test_weights_that_do_not_fit_are_refused(model: EMformerModel, tmp_path: Path, kind: str) -> None:
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if kind == "missing":
        del weights["embeddings.mask_token"]
    else:
        weights["embeddings.surplus"] = torch.zeros(3)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{kind} keys embeddings\.(mask_token|surplus)"):
        EMformerModel.from_pretrained(tmp_path)


def test_a_weight_file_cut_short_is_refused(model: EMformerModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match="damaged or cut short"):
        EMformerModel.from_pretrained(tmp_path)


def test_weights_of_another_model_are_refused(model: EMformerModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="model type 'bert'; expected 'emformer'"):
        EMformerModel.from_pretrained(tmp_path)


def test_an_unknown_name_is_refused_with_what_there_is() -> None:
    for error in (InputError, OSError):  # the latter is what callers in transformers expect
        with pytest.raises(error, match=r"'emformer-smal' is not known; expected one of .*emformer-small"):
            EMformerModel.from_pretrained("emformer-smal")


def test_what_is_not_there_is_an_oserror(tmp_path: Path) -> None:
    for cls in (EMformerModel, EMformerConfig, EMformerProcessor):
        with pytest.raises(OSError, match=r"cannot be loaded|holds no"):
            cls.from_pretrained(tmp_path)


class Classifier(EMformerPreTrainedModel):
    """A head, as somebody would write it."""

    def __init__(self, config: EMformerConfig):
        super().__init__(config)
        self.emformer = EMformerModel(config)
        self.classifier = torch.nn.Linear(2, 3)
        self.post_init()


def test_a_head_loads_the_weights_and_tells_what_is_new(model: EMformerModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    head, info = Classifier.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert_same_weights(head.emformer, model)
    head.save_pretrained(tmp_path / "head")
    again, info = Classifier.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not info["missing_keys"] and torch.equal(again.classifier.weight, head.classifier.weight)
    body, info = EMformerModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert info["unexpected_keys"] == {"classifier.weight", "classifier.bias"}
    assert_same_weights(body, model)
    weights = load_file(tmp_path / "head" / "model.safetensors")
    del weights["emformer.embeddings.mask_token"]
    save_file(weights, tmp_path / "head" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing keys emformer\.embeddings\.mask_token"):
        Classifier.from_pretrained(tmp_path / "head")


# --- training by other libraries ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "told"),
    [("thicknes", "did you mean 'thickness'"), ("cached", "expected factor, frame_spacing, labels")],
)
def test_an_unknown_keyword_is_refused(model: EMformerModel, keyword: str, told: str) -> None:
    with pytest.raises(InputError, match=f"forward got an unexpected keyword argument '{keyword}'; {told}"):
        model(clip(1, 2, 4, 8), 4, **{keyword: 0.5})


def test_labels_give_the_loss_that_training_minimises(model: EMformerModel) -> None:
    sections, labels = clip(2, 3, 4, 8), clip(2, 3, 16, 8, seed=2)
    assert model(sections, 4).loss is None
    with torch.enable_grad():
        out = model(sections, 4, labels=labels)
        assert torch.equal(out.loss, reconstruction_loss(out.reconstruction, out.scale, labels)[0])
        gradients = torch.autograd.grad(out.loss, list(model.parameters()), allow_unused=True)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients[1:])
    with pytest.raises(InputError, match=r"the labels are \(2, 3, 12, 8\), the reconstruction \(2, 3, 16, 8\)"):
        model(sections, 4, labels=labels[:, :, :12])


def test_clips_of_a_batch_may_have_geometries_of_their_own(model: EMformerModel) -> None:
    sections, labels = clip(3, 3, 4, 8), clip(3, 3, 32, 8, seed=2)
    factors, thicknesses = torch.tensor([4.0, 8.0, 4.0]), torch.tensor([1.0, 0.5, 1.0])
    mixed = model(sections, factors, thickness=thicknesses, labels=labels)
    losses = []
    for number, (factor, thickness) in enumerate(zip(factors.tolist(), thicknesses.tolist(), strict=True)):
        planes = SectionModel(factor).num_planes(4)
        one = {"thickness": thickness, "labels": labels[number : number + 1, :, :planes]}
        alone = model(sections[number : number + 1], factor, **one)
        losses.append(alone.loss)
        for name in ("reconstruction", "scale"):
            torch.testing.assert_close(mixed[name][number, :, :planes], alone[name][0], atol=1e-5, rtol=1e-4)
            assert mixed[name][number, :, planes:].isnan().all()
    torch.testing.assert_close(mixed.loss, torch.stack(losses).mean(), atol=1e-6, rtol=1e-5)
    assert_same(model(sections, torch.full((3,), 4.0), thickness=torch.ones(3)), model(sections, 4.0))
    with pytest.raises(InputError, match="factor has 2 values for 3 clips"):
        model(sections, factors[:2])
    with pytest.raises(InputError, match="positions needs clips of one geometry; these have 2"):
        model(sections, factors, thickness=thicknesses, positions=[0.0, 1.0])


def test_the_auto_classes_know_the_model(model: EMformerModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    EMformerProcessor().save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), EMformerConfig)
    assert isinstance(AutoFeatureExtractor.from_pretrained(tmp_path), EMformerProcessor)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), EMformerProcessor)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, EMformerModel)
    assert_same_weights(loaded, model)


@pytest.mark.parametrize("factor", [4, 5.5])
def test_faithful_planes_give_the_sections_and_are_else_the_clean_ones(model: EMformerModel, factor: float) -> None:
    geometry = SectionModel(factor, 1 / 2)
    sections, mask = clip(1, 3, 6, 16), torch.zeros(1, 1, 6, 1, dtype=torch.bool)
    mask[:, :, 2] = True
    with torch.inference_mode():
        clean, faithful = (
            model(sections, factor, thickness=0.5, section_mask=mask, mode=mode).reconstruction for mode in MODES
        )
    cut = geometry.degrade(faithful[0].transpose(0, 1).numpy())
    given = sections[0].transpose(0, 1).numpy()
    np.testing.assert_allclose(cut[[0, 1, 3, 4, 5]], given[[0, 1, 3, 4, 5]], atol=1e-4)
    assert np.abs(cut[2] - given[2]).mean() > 0.1  # a masked section imposes nothing
    imaged = geometry.matrix(6).any(axis=0)
    torch.testing.assert_close(clean[:, :, ~imaged], faithful[:, :, ~imaged])


def test_an_unknown_mode_is_an_error(model: EMformerModel) -> None:
    with pytest.raises(InputError, match="mode is 'noisy'; expected one of clean, faithful"):
        model(torch.randn(1, 2, 4, 8), 2.0, mode="noisy")  # type: ignore[arg-type]
