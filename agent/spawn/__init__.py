# SPDX-License-Identifier: Apache-2.0
"""Starting programs: here, or by the executor, which keeps the rights that the agent itself does without.

The agent reads definitions, images and D-Bus messages; the executor reads requests of the agent only. It mounts what a
request says in a mount namespace of its own, spawns, and reports the end. See cleat-executor.service.
"""
