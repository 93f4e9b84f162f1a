# SPDX-License-Identifier: Apache-2.0
"""One supervised container: transitions, driver, features."""
