from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st

from spptransfer.pretraining.curves import training_curves

SVG = "{http://www.w3.org/2000/svg}"


def line(epoch, *, lr=0.01, distillation=0.0, loss=2.0, top1=0.2, top5=0.5):
    return {
        "epoch": epoch,
        "cross_entropy": loss,
        "distillation": distillation,
        "val_top1": top1,
        "val_top5": top5,
        "lr": lr,
        "size": 64,
    }


def drawn(history, epochs=10):
    return ElementTree.fromstring(training_curves(history, epochs))


@given(
    st.lists(
        st.builds(
            line,
            st.integers(1, 10),
            lr=st.floats(0, 1),
            distillation=st.floats(0, 3),
            loss=st.floats(0, 1e6),
            top1=st.floats(0, 1),
            top5=st.floats(0, 1),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_metrics_are_a_picture_with_every_point_inside(history):
    picture = drawn(history)
    width, height = float(picture.get("width")), float(picture.get("height"))
    plots = 5 if any(line["distillation"] for line in history) else 4
    circles = picture.findall(f"{SVG}circle")
    assert len(circles) == len(history) * plots
    assert all(0 <= float(c.get("cx")) <= width for c in circles)
    assert all(0 <= float(c.get("cy")) <= height for c in circles)


def test_higher_is_drawn_higher_and_later_farther_right():
    picture = drawn([line(1, loss=3.0), line(2, loss=1.0)])
    first, second = picture.findall(f"{SVG}circle")[:2]
    assert float(first.get("cx")) < float(second.get("cx"))
    assert float(first.get("cy")) < float(second.get("cy"))


def test_a_teacher_has_a_curve_of_its_own():
    titles = [text.text for text in drawn([line(1, distillation=0.4)]).findall(f"{SVG}text")]
    assert "distance from the teacher, training" in titles


def test_points_tell_their_numbers():
    (title, *_) = [c.find(f"{SVG}title").text for c in drawn([line(3)]).findall(f"{SVG}circle")]
    assert title == "epoch 3 at 64 pixels: 2"
