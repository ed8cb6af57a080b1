"""Models that differ from dm_control's, made by editing its XML."""

from __future__ import annotations

import copy
import itertools
import xml.etree.ElementTree as ET

from tdmpc2.envs.headless import suite


def reacher_xml(joints: int, length: float) -> str:
    """Build the stock reacher with ``joints`` joints and arm segments of ``length`` metres (stock: two, 0.12)."""
    root = ET.fromstring(suite.common.read_model("reacher.xml"))
    world, actuators = _find(root, "worldbody"), _find(root, "actuator")
    arm = _find(world, "body[@name='arm']")
    hand = _find(arm, "body[@name='hand']")
    arm.remove(hand)
    segments = [copy.deepcopy(arm) for _ in range(joints - 1)]
    for i, segment in enumerate(segments):
        segment.set("name", f"arm{i}")
        _find(segment, "geom").attrib.update(name=f"arm{i}", fromto=f"0 0 0 {length} 0 0")
        _find(segment, "joint").set("name", f"shoulder{i}")
    for parent, child in itertools.pairwise([*segments, hand]):
        child.set("pos", f"{length} 0 0")
        _find(child, "joint").attrib.update(limited="true", range="-80 80")
        parent.append(child)
    _find(hand, "body[@name='finger']").set("pos", f"{length} 0 0")
    world[list(world).index(arm)] = segments[0]

    actuators.clear()
    for body in [*segments, hand]:
        joint = _find(body, "joint").attrib["name"]
        ET.SubElement(actuators, "motor", name=joint, joint=joint)
    return ET.tostring(root, encoding="unicode")


def fish_obstacles_xml() -> str:
    """Build the stock fish with the boxes ``wall0`` ... ``wall3`` around the middle of its tank."""
    root = ET.fromstring(suite.common.read_model("fish.xml"))
    for i, xy in enumerate(["-.15 -.15", ".15 -.15", ".15 .15", "-.15 .15"]):
        box = {"name": f"wall{i}", "type": "box", "pos": f"{xy} .1", "size": ".05 .05 .1", "material": "self"}
        ET.SubElement(_find(root, "worldbody"), "geom", box)
    return ET.tostring(root, encoding="unicode")


def _find(element: ET.Element, path: str) -> ET.Element:
    found = element.find(path)
    assert found is not None, path
    return found
