# SPDX-License-Identifier: Apache-2.0
"""Across containers: desired against actual, and the plan between them."""
