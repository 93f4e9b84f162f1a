# SPDX-License-Identifier: Apache-2.0
"""conmon's protocol: its command line, pipes, exit files, attach socket."""
