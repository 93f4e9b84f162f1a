# SPDX-License-Identifier: Apache-2.0
"""The resident agent: composition root and D-Bus interface."""
