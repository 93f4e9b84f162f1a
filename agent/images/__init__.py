# SPDX-License-Identifier: Apache-2.0
"""Images: fetched by skopeo, unpacked by umoci, kept once per digest."""
