# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime specification (pure) and the runtimes' command lines."""
