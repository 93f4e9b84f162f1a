# SPDX-License-Identifier: Apache-2.0
"""Definitions: TOML files in, immutable typed values and diagnostics out."""
