# SPDX-License-Identifier: Apache-2.0
"""systemd as seen over D-Bus, sd_notify, passed sockets and the journal.

Never put the parent folder on sys.path: this folder would hide python-systemd.
"""
