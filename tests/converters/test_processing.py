"""Processing in the graph: what is asked for is decoded strictly, and computed as NumPy does it."""

import itertools

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import edgeml
from edgeml.bundle import Bundle
from edgeml.errors import EdgemlError, ModelError, UsageError
from edgeml.runtime.bind import open_variant
from edgeml_converters.model import run_model
from edgeml_converters.passes.base import PassContext
from edgeml_converters.passes.process import PostprocessPass, PreprocessPass
from edgeml_converters.processing import read_postprocess, read_preprocess
from edgeml_converters.processing.apply import processed
from edgeml_converters.processing.spec import options_of
from edgeml_converters.source import Source
from tests.support.corpus import corpus_file
from tests.support.models import cnn, mlp

RNG = np.random.default_rng(0)


def identity(dims, kind=TensorProto.FLOAT, opset=17):
    """A model that gives back its input."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["y"], name="same")],
        "same",
        [helper.make_tensor_value_info("image", kind, dims)],
        [helper.make_tensor_value_info("y", kind, dims)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


def prepared(text, images, dims=("n", 3, 8, 8), kind=TensorProto.FLOAT):
    spec = read_preprocess(text)
    model = PreprocessPass(**options_of(spec)).run(identity(dims, kind), PassContext()).model
    onnx.checker.check_model(model, full_check=True)
    return run_model(model, {"image": images})["y"]


def camera(n=2, height=8, width=8, channels=3):
    return RNG.integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def test_a_camera_image_becomes_what_imagenet_models_were_trained_with():
    images = camera()
    got = prepared("imagenet", images)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    want = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert got.dtype == np.float32
    assert np.abs(got - want).max() < 1e-5


def test_colours_and_order_of_axes():
    images = camera()
    assert np.array_equal(prepared("color=bgr", images), images[..., ::-1].transpose(0, 3, 1, 2))
    assert np.array_equal(
        prepared("model_color=bgr", images), images[..., ::-1].transpose(0, 3, 1, 2)
    )
    turned = prepared("layout=chw", images.transpose(0, 3, 1, 2), ("n", 8, 8, 3))
    assert np.array_equal(turned, images)
    grey = prepared("scale=1", images, ("n", 1, 8, 8))
    want = images.astype(np.float64) @ (0.299, 0.587, 0.114)
    assert np.abs(grey[:, 0] - want).max() < 1e-3
    one = camera(channels=1)
    spread = prepared("color=gray", one)
    assert np.array_equal(spread, np.repeat(one, 3, 3).transpose(0, 3, 1, 2))


def resized(images, height, width):
    """Bilinear with half-pixel coordinates, by its definition."""

    def axis(size, target):
        at = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, size - 1), at - low

    y0, y1, fy = axis(images.shape[1], height)
    x0, x1, fx = axis(images.shape[2], width)
    fy, fx = fy[None, :, None, None], fx[None, None, :, None]
    a = images.astype(np.float64)
    top = a[:, y0][:, :, x0] * (1 - fx) + a[:, y0][:, :, x1] * fx
    low = a[:, y1][:, :, x0] * (1 - fx) + a[:, y1][:, :, x1] * fx
    return (top * (1 - fy) + low * fy).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("dims", [("n", 3, 8, 8), (2, 3, 8, 8)])
@pytest.mark.parametrize("more", ["", " size=20x12"])
def test_images_of_any_size_are_resized(dims, more):
    images = camera(2, 20, 12)
    got = prepared(f"resize=8x8{more}", images, dims)
    assert np.abs(got - resized(images, 8, 8)).max() < 1e-3


def test_shorter_side_then_the_middle():
    images = camera(1, 20, 40)
    got = prepared("size=20x40 resize=10 fit=shorter crop=8", images)
    assert np.abs(got - resized(images, 10, 20)[:, :, 1:9, 6:14]).max() < 1e-3


def test_letterbox_keeps_the_proportions():
    images = camera(1, 8, 16)
    got = prepared("size=8x16 resize=8x8 fit=letterbox pad=114", images)
    assert np.abs(got[:, :, 2:6] - resized(images, 4, 8)).max() < 1e-3
    assert (got[:, :, :2] == 114).all()
    assert (got[:, :, 6:] == 114).all()


@pytest.mark.parametrize("mode", ["nearest", "cubic"])
def test_other_interpolations_run(mode):
    flat = np.full((1, 5, 7, 3), 200, np.uint8)
    assert np.abs(prepared(f"resize=8x8 interpolation={mode}", flat) - 200).max() < 1e-3


def test_sensors_and_half_precision():
    rows = RNG.integers(-100, 100, (4, 3)).astype(np.int16)
    got = prepared("dtype=int16 scale=0.5 mean=1,2,3 std=1,1,2", rows, ("n", 3))
    assert np.abs(got - (rows * 0.5 - [1, 2, 3]) / [1, 1, 2]).max() < 1e-6
    half = prepared("unit", camera(), ("n", 3, 8, 8), TensorProto.FLOAT16)
    assert half.dtype == np.float16


@pytest.mark.parametrize(
    ("text", "dims", "message"),
    [
        ("resize=9x9", ("n", 3, 8, 8), "takes images of 8x8, preprocessing gives 9x9"),
        ("size=9x9", ("n", 3, 8, 8), "takes images of 8x8"),
        ("mean=1,2", ("n", 3, 8, 8), "mean holds 2 numbers, but the model has 3 channels"),
        ("crop=4", ("n", 3, 4, 4), "without the size"),
        ("size=4x4 crop=8", ("n", 3, 8, 8), "cannot be cropped"),
        ("resize=8", ("n", 3), "has 2 axes, so it is no image"),
        ("unit", ("n", 5, 8, 8), "does not tell which axis"),
        ("unit", ("n", 3, 8, 3), "does not tell which axis"),
        ("unit model_layout=chw", ("n", 5, 8, 8), "has 5 channels"),
        ("unit model_color=gray", ("n", 3, 8, 8), "takes 3 channels, model_color is 'gray'"),
        ("input=imag scale=2", ("n", 3, 8, 8), "no input 'imag'"),
    ],
)
def test_what_does_not_fit_the_model(text, dims, message):
    with pytest.raises(ModelError, match=message):
        prepared(text, camera(), dims)


def test_an_old_model_or_one_of_integers_is_refused():
    with pytest.raises(ModelError, match="operator set 11"):
        PreprocessPass(scale=0.5).run(identity(("n", 3), opset=11), PassContext())
    with pytest.raises(ModelError, match="is no float"):
        PreprocessPass(scale=0.5).run(identity(("n", 3), TensorProto.INT64), PassContext())


# --- decoding -------------------------------------------------------------------------------


def test_file_and_short_form_mean_the_same(tmp_path):
    path = tmp_path / "camera.toml"
    path.write_text(
        'preset = "imagenet"\ncolor = "bgr"\nsize = [480, 640]\nresize = 256\nfit = "shorter"\n'
        'crop = [224, 224]\nscale = "1/255"\n'
    )
    short = "imagenet color=bgr size=480x640 resize=256 fit=shorter crop=224x224 scale=1/255"
    assert read_preprocess(str(path)) == read_preprocess(short)
    (tmp_path / "names.txt").write_text("cat\ndog\n\n")
    after = tmp_path / "after.toml"
    after.write_text('activation = "softmax"\ntop = 2\nlabels = "names.txt"\n')
    spec = read_postprocess(str(after))
    assert spec.labels == ("cat", "dog")
    assert spec == read_postprocess(f"softmax top=2 labels={tmp_path / 'names.txt'}")
    after.write_text('[nms]\nboxes = "b"\nscores = "s"\niou = 0.4\n')
    assert read_postprocess(str(after)) == read_postprocess("boxes=b scores=s nms iou=0.4")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "is empty", "file"),
        ("colour=bgr", "unknown key 'colour'", "color"),
        ("imagenett", "'imagenett' means nothing alone", "imagenet"),
        ("preset=x", "unknown preset 'x'", ""),
        ("color", "means nothing alone", "color=VALUE"),
        ("color=grey", "color is 'grey'", "did you mean 'gray'?"),
        ("scale=x", "Expected `float`", "processing.md"),
        ("scale=0", "scale not 0", ""),
        ("scale=nan", "must be finite", ""),
        ("scale=1/0", "Expected `float`", ""),
        ("scale=1 scale=2", "'scale' is given twice", ""),
        ("size=480", "expected HEIGHTxWIDTH", ""),
        ("size=axb", "is no size", "480x640"),
        ("resize=0", "expected HEIGHTxWIDTH", ""),
        ("fit=shorter", "without resize", ""),
        ("resize=8 fit=shorter", "needs the size", ""),
        ("resize=8x8 size=9x9 fit=shorter", "expected one", ""),
        ("mean=1,b", "expected a number", ""),
        ("std=0", "std holds 0", ""),
        ("none.toml", "cannot be read", "path"),
        ("scale.x=1 scale=2", "given twice", ""),
        ("scale=2 scale.x=1", "contradict", ""),
    ],
)
def test_wrong_words_before_the_model(text, message, hint):
    with pytest.raises(UsageError) as caught:
        read_preprocess(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("softmx", "means nothing alone"),
        ("softmax top=3 argmax", "top and argmax are given"),
        ("nms argmax", "argmax and nms are given"),
        ("axis=1", "nothing is asked for"),
        ("top=-1", "top is -1"),
        ("tip=1", "unknown key 'tip'"),
        ("nms.iuo=1", "unknown key 'iuo' in nms"),
        ("nms boxes=b", "one of boxes and scores"),
        ("nms iou=2", "iou is in"),
        ("nms format=centre", "format is 'centre'"),
        ("nms max=0", "expected 1"),
        ("softmax labels=nowhere.txt", "cannot be read"),
    ],
)
def test_wrong_words_after_the_model(text, message):
    with pytest.raises(UsageError) as caught:
        read_postprocess(text)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "content", ["scale = [", "scal = 1\n", "scale = true\n", "\x00", "x=" * 99]
)
def test_wrong_files(tmp_path, content):
    path = tmp_path / "p.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"p\.toml"):
        read_preprocess(str(path))


WORDS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(["imagenet", "softmax", "nms", "resize=8", "top=2", "color=bgr", "iou=.5"]),
        st.builds("{}={}".format, st.text(max_size=6), st.text(max_size=6)),
        st.builds(
            "{}={}".format,
            st.sampled_from(["scale", "mean", "size", "crop", "axis", "nms.max", "labels"]),
            st.one_of(st.text(max_size=6), st.integers().map(str), st.floats().map(str)),
        ),
    ),
    max_size=5,
).map(" ".join)


@given(WORDS)
def test_any_text_is_decoded_or_is_one_line(text):
    for read in (read_preprocess, read_postprocess):
        try:
            spec = read(text)
        except EdgemlError as error:
            assert isinstance(error, UsageError)
            assert "\n" not in error.message
        else:
            kind = type(spec)
            assert msgspec.convert(options_of(spec), kind) == spec


# --- after the model ------------------------------------------------------------------------


def after(text, model, feed):
    spec = read_postprocess(text)
    made = PostprocessPass(**options_of(spec)).run(model, PassContext()).model
    onnx.checker.check_model(made, full_check=True)
    return run_model(made, feed)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_classes_after_the_model():
    model, x = mlp(), {"x": RNG.normal(size=(5, 4)).astype(np.float32)}
    raw = run_model(model, x)["y"]
    got = after("softmax", model, x)
    assert list(got) == ["probabilities"]
    assert np.abs(got["probabilities"] - softmax(raw)).max() < 1e-6
    got = after("sigmoid", model, x)
    assert np.abs(got["scores"] - 1 / (1 + np.exp(-raw))).max() < 1e-6
    got = after("argmax", model, x)
    assert np.array_equal(got["class"], raw.argmax(1))
    got = after("softmax top=2", model, x)
    assert list(got) == ["classes", "scores"]
    assert np.array_equal(got["classes"], np.argsort(-raw, 1)[:, :2])
    assert np.abs(got["scores"] - np.sort(softmax(raw), 1)[:, :0:-1]).max() < 1e-6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("softmax top=4", "has 3 classes, top is 4"),
        ("softmax axis=0", "axis 0 is the batch"),
        ("softmax axis=5", "no classes on axis 5"),
        ("softmax output=z", "no output 'z'"),
        ("nms", "takes a batch of"),
    ],
)
def test_what_does_not_fit_the_outputs(text, message):
    with pytest.raises(ModelError, match=message):
        after(text, mlp(), {})


def detector(boxes_dims, scores_dims, joined=False):
    """A model that gives back boxes and scores, or both in one tensor."""
    kind = TensorProto.FLOAT
    ins = [("b", boxes_dims)] if joined else [("b", boxes_dims), ("s", scores_dims)]
    outs = [("out", boxes_dims)] if joined else [("boxes", boxes_dims), ("scores", scores_dims)]
    graph = helper.make_graph(
        [
            helper.make_node("Identity", [i[0]], [o[0]], name=f"same{o[0]}")
            for i, o in zip(ins, outs, strict=True)
        ],
        "detector",
        [helper.make_tensor_value_info(n, kind, d) for n, d in ins],
        [helper.make_tensor_value_info(n, kind, d) for n, d in outs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


BOXES = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 1, 1]], np.float32)
#: Background, and two classes.
SCORES = np.array([[0.1, 0.9, 0], [0.2, 0.8, 0], [0.3, 0, 0.7], [0.99, 0.1, 0.1]], np.float32)


@pytest.mark.parametrize("turned_boxes", [False, True])
@pytest.mark.parametrize("turned_scores", [False, True])
def test_boxes_that_overlap_become_one(turned_boxes, turned_scores):
    boxes = BOXES[:3][None]
    scores = SCORES[:3, 1:][None]
    boxes = boxes.transpose(0, 2, 1) if turned_boxes else boxes
    scores = scores.transpose(0, 2, 1) if turned_scores else scores
    model = detector(boxes.shape, scores.shape)
    got = after("nms boxes=boxes scores=scores max=4", model, {"b": boxes, "s": scores})
    assert list(got) == ["boxes", "scores", "classes"]
    assert got["classes"].tolist() == [[0, 1, -1, -1]]
    assert np.allclose(got["scores"], [[0.9, 0.7, 0, 0]])
    assert np.array_equal(got["boxes"][0], [BOXES[0], BOXES[2], np.zeros(4), np.zeros(4)])


def test_background_is_skipped_and_nothing_found_is_no_error():
    model = detector((1, 4, 4), (1, 4, 3))
    feed = {"b": BOXES[None], "s": SCORES[None]}
    got = after("nms boxes=boxes scores=scores skip=1 score=0.5 max=3", model, feed)
    assert got["classes"].tolist() == [[0, 1, -1]]
    got = after("nms boxes=boxes scores=scores skip=1 score=0.95 max=2", model, feed)
    assert got["classes"].tolist() == [[-1, -1]]
    assert not got["scores"].any()


def test_one_tensor_of_middles_sizes_and_scores():
    boxes = BOXES[:3]
    middles = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    many = np.tile(np.concatenate([middles, SCORES[:3]], 1), (4, 1)).T[None].astype(np.float32)
    model = detector(many.shape, None, joined=True)
    got = after("nms format=center skip=1 max=3", model, {"b": many})
    assert got["classes"].tolist() == [[0, 1, -1]]
    assert np.allclose(got["boxes"][0, :2], boxes[[0, 2]])


# --- from end to end ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory, own_profile):
    folder = tmp_path_factory.mktemp("camera")
    model = cnn()
    (folder / "names.txt").write_text("".join(f"digit {i}\n" for i in range(10)))
    # Patches of every brightness: noise alone would all be one class.
    levels = RNG.integers(0, 250, (160, 3, 2, 1))
    images = np.kron(levels, np.ones((1, 4, 5, 1))) + RNG.integers(0, 6, (160, 12, 10, 1))
    images = images.astype(np.uint8)
    small = PreprocessPass(color="gray", resize=(8, 8), scale=1 / 30, mean=(4.0,))
    logits = run_model(small.run(model, PassContext()).model, {"image": images})["logits"]
    # With random weights one class would be all: each gets its share by its bias.
    bias = model.graph.initializer[-1]
    values = numpy_helper.to_array(bias) - logits.mean(0)
    bias.CopyFrom(numpy_helper.from_array(values.astype(np.float32), bias.name))
    labels = (logits - logits.mean(0)).argmax(1)
    onnx.save(model, folder / "digits.onnx")
    np.savez(folder / "data.npz", x_calib=images[:40], x_test=images[40:], y_test=labels[40:])
    assert len(set(labels.tolist())) > 3
    result = edgeml.convert(
        folder / "digits.onnx",
        own_profile("camera", runtimes="'onnxruntime'"),
        data=folder / "data.npz",
        max_drop=0.2,
        effort="quick",
        preprocess=["color=gray size=12x10 resize=8x8 scale=1/30 mean=4"],
        postprocess=[f"softmax top=3 labels={folder / 'names.txt'}"],
        out=folder / "digits.edgeml",
    )
    return folder, result, images, labels


def test_the_public_contract_is_the_new_one(converted):
    folder, _, images, labels = converted
    bundle = Bundle.open(folder / "digits.edgeml")
    manifest = bundle.manifest
    assert [(s.name, s.dtype, s.shape) for s in manifest.inputs] == [
        ("image", "uint8", (-1, 12, 10, 1))
    ]
    assert [(s.name, s.dtype, s.shape) for s in manifest.outputs] == [
        ("classes", "int64", (-1, 3)),
        ("scores", "float32", (-1, 3)),
    ]
    assert manifest.labels == tuple(f"digit {i}" for i in range(10))
    assert manifest.score.name == "top1"
    assert manifest.score.value == 1.0
    unpacked = folder / "unpacked"
    bundle.unpack(unpacked)
    variant = manifest.variants[0]
    program = open_variant(unpacked, variant, manifest.inputs, manifest.outputs)
    got = program.session().run({"image": images[40:48]})
    program.close()
    assert (got["classes"][:, 0] == labels[40:48]).mean() >= 0.8


def test_the_lineage_names_what_was_built_in(converted):
    folder = converted[0]
    lineage = Bundle.open(folder / "digits.edgeml").manifest.lineage
    for steps in lineage.steps.values():
        names = [step.name for step in steps]
        assert names[:2] == ["preprocess", "postprocess"]
        assert steps[0].options["resize"] == [8, 8]
        assert steps[0].before != steps[0].after == steps[1].before
        assert all(a.after == b.before for a, b in itertools.pairwise(steps))


def test_data_of_the_old_form_are_refused_and_the_hint_says_why(tmp_path, own_profile):
    onnx.save(cnn(), tmp_path / "digits.onnx")
    np.savez(tmp_path / "old.npz", x_test=RNG.normal(size=(20, 1, 8, 8)).astype(np.float32))
    with pytest.raises(EdgemlError, match=r"'test/image' has shape \[20, 1, 8, 8\]") as caught:
        edgeml.convert(
            tmp_path / "digits.onnx",
            own_profile("old", runtimes="'onnxruntime'"),
            data=tmp_path / "old.npz",
            preprocess=["color=gray scale=1/255"],
            out=tmp_path / "x.edgeml",
        )
    assert "as a device gives them" in caught.value.hint


def test_labels_must_be_as_many_as_classes(tmp_path):
    onnx.save(cnn(), tmp_path / "digits.onnx")
    (tmp_path / "names.txt").write_text("a\nb\n")
    source = Source.open(tmp_path / "digits.onnx")
    with pytest.raises(UsageError, match="2 labels for 10 classes"):
        processed(source, [], [f"softmax labels={tmp_path / 'names.txt'}"])


def test_one_input_is_prepared_once(tmp_path):
    onnx.save(cnn(), tmp_path / "digits.onnx")
    with pytest.raises(UsageError, match="given 2 times for input 'image'"):
        processed(Source.open(tmp_path / "digits.onnx"), ["color=gray", "input=image"], [])


def test_an_old_model_is_upgraded_first(tmp_path):
    onnx.save(cnn(opset=11), tmp_path / "old.onnx")
    source = processed(Source.open(tmp_path / "old.onnx"), ["color=gray unit"], ["argmax"])
    assert [step.name for step in source.steps] == ["upgrade_opset", "preprocess", "postprocess"]
    assert source.outputs[0].name == "class"


@pytest.mark.corpus
def test_a_face_detector_gives_the_faces_themselves():
    source = Source.open(corpus_file("models/ultraface_RFB_320.onnx"))
    raw = np.load(corpus_file("eval/ultraface_RFB_320.npz"))
    name = source.inputs[0].name
    images = raw[f"test/{name}"][:4].astype(np.float32)
    found = processed(source, [], ["nms boxes=boxes scores=scores skip=1 score=0.7 iou=0.3"])
    assert [s.shape for s in found.outputs] == [(1, 100, 4), (1, 100), (1, 100)]
    plain = run_model(source.model, {name: images})
    got = run_model(found.model, {name: images})
    for i in range(len(images)):
        best = plain["scores"][i, :, 1].max()
        assert np.isclose(got["scores"][i, 0], best if best >= 0.7 else 0.0)
        assert ((got["classes"][i] == 0) == (got["scores"][i] > 0)).all()
