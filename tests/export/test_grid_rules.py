"""The grid rules are those of the quantizer that applies them, and of TFLite's kernels."""

from __future__ import annotations

import json

import pytest
from ai_edge_quantizer import default_policy
from ai_edge_quantizer.algorithms.utils.common_utils import OpQuantConstraint
from ai_edge_quantizer.utils import constrained_ops_utils

from ocs_tf.export import grid_rules


def test_rules_are_those_of_the_quantizer():
    known = {
        rule: set(constrained_ops_utils.get_constrained_op_list(constraint))
        for rule, constraint in {
            "own": OpQuantConstraint.NO_CONSTRAIN,
            "input": OpQuantConstraint.SAME_AS_INPUT_SCALE,
            "output": OpQuantConstraint.SAME_AS_OUTPUT_SCALE,
            "fixed": OpQuantConstraint.FIXED_OUTPUT_SCALE,
        }.items()
    }
    for rule, ops in known.items():
        assert {grid_rules.grid_rule(op.value) for op in ops} == {rule}


def test_every_operator_of_the_quantizer_has_an_integer_form():
    policy = json.loads(default_policy.DEFAULT_JSON_POLICY)["ops_per_config"]["static_wi8_ai8"]
    known = set(policy) - {"INPUT", "OUTPUT", "CONV_2D_TRANSPOSE"} | {"TRANSPOSE_CONV"}
    assert known <= grid_rules.INTEGER_FORMS


@pytest.mark.parametrize(
    ("op", "grid"),
    [
        ("SOFTMAX", (1 / 256, -128)),
        ("LOGISTIC", (1 / 256, -128)),
        ("TANH", (1 / 128, 0)),
        ("L2_NORMALIZATION", (1 / 128, 0)),
        ("LOG_SOFTMAX", (1 / 16, 127)),
    ],
)
def test_fixed_output_grid(op, grid):
    assert grid_rules.fixed_output_grid(op) == grid


def test_fixed_output_grid_of_others_is_none():
    assert grid_rules.fixed_output_grid("CONV_2D") is None
