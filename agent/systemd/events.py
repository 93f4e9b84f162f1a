# SPDX-License-Identifier: Apache-2.0
"""What is told to the journal about containers and about the agent: one event kind per row, each with its MESSAGE_ID.

The ids are for ever: scripts match on them, and config/catalog/cleat.catalog explains each (a test compares
the two). The value is the entry's CLEAT_EVENT field; PRIORITY is the row's unless the sender says otherwise.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Self


class Priority(IntEnum):
    """syslog(3)'s levels, as far as they are used here."""

    CRITICAL = 2
    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


class Event(StrEnum):
    """Kinds of entries. `message_id` is 128 random bits in hex, `priority` the usual level."""

    message_id: str
    priority: Priority

    def __new__(cls, value: str, message_id: str, priority: Priority = Priority.INFO) -> Self:
        event = str.__new__(cls, value)
        event._value_ = value
        event.message_id = message_id
        event.priority = priority
        return event

    CREATED = "created", "b8fc5d47767b4da89b0256a9bfa6970c"
    STARTED = "started", "4d0f4917d042430db9520d7c13af7d26"
    READY = "ready", "57ccbaac2bbc4b1689c06dfd40bb2e39"
    RELOADED = "reloaded", "702e0c895bc045b9bc71ac941cd348f0"
    RELOAD_FAILED = "reload-failed", "4f362154695d4b02a86b09074f64c925", Priority.WARNING
    START_FAILED = "failed-to-start", "3cecad7bc3b24579b8f6bbb7b2723d0c", Priority.ERROR
    EXITED = "exited", "9beca825f191417d9dc595dce1fa800a"
    OOM = "oom", "98b8117f97244725a855ebf71416213e", Priority.ERROR
    KILLED = "killed", "0ee5645febdd41fe84f38fdf12e2072a", Priority.WARNING
    LOST = "lost", "683cd383d4134277b6d2914b335e840b", Priority.ERROR
    STOPPING = "stopping", "7e507415525040b09e0de7214275fb88"
    STOP_SIGNAL_IGNORED = "stop-signal-ignored", "76483cdbe896455c841a019fc936907f", Priority.WARNING
    STOPPED = "stopped", "cbffcb0ac53442f3922b3470a4883580"
    PAUSED = "paused", "107ece03ad1142c19d046748c8fb6b90"
    RESUMED = "resumed", "ec1919aeba9d4a31a5a1da96add957a1"
    BACKOFF = "backoff", "94f45d760f64404d937e197e0b20e94c", Priority.NOTICE
    START_LIMIT = "start-limit", "cca0a1decde64b0ab96a34f820c870c3", Priority.ERROR
    UNHEALTHY = "unhealthy", "8082cdaf041d475bacd16e2949fc571d", Priority.WARNING
    HEALTHY = "healthy", "fb33fb89257c4bd58f63bd2a0a40d9e8"
    WATCHDOG = "watchdog", "afe9b31223114f1fadab3efc90648110", Priority.ERROR
    RUNTIME_LIMIT = "runtime-limit", "c780cf43f2e744bdb42fa5d93ecd462e", Priority.WARNING
    ADOPTED = "adopted", "441c4cd28fd949b68a7176dce216218a"
    UNCLEAN_LEFTOVER = "unclean-leftover", "e8c7227d1ae94ca69893bc2cc7c4e74c", Priority.WARNING
    RECORD_UNWRITABLE = "record-unwritable", "ac1d05a8c6054e70b273327f5a2cd5e5", Priority.ERROR
    EXEC = "exec", "0439f368985c4051aeb030984ca29fe8"
    CHECKPOINTED = "checkpointed", "dc756fbbd0e544bb89362be310064a55"
    RESTORED = "restored", "8c05d8e875c44a6ab96f33a4b52809b6"
    PULLING = "pulling", "413e29bc186d4dd0b80ff9c57ceaf843"
    PULLED = "pulled", "a63442ffbf024c638486d973a7df27a5"
    PULL_FAILED = "pull-failed", "a011d35e1a2b4e6f82708fba5db36b62", Priority.ERROR
    UPDATE_AVAILABLE = "update-available", "75b19be2cd2a460087a7b9351709b15a", Priority.NOTICE
    UPDATED = "updated", "a7b5377379da40cc82f1fa012815abce", Priority.NOTICE
    UPDATE_FAILED = "update-failed", "4589a8a2979e455cb54e2036323121fc", Priority.ERROR
    ROLLED_BACK = "rolled-back", "0b280d3024784259bcf8f1c28b181fa2", Priority.WARNING
    SOCKET_LISTENING = "socket-listening", "8462cb9265db4b1d953450ff995bf572"
    SOCKET_FAILED = "socket-failed", "277f258d8b0a4628af6d4302e1ffa65c", Priority.ERROR
    SOCKET_TRIGGERED = "socket-triggered", "b21fbc12c5c64e20b87f7daa3ed12181"
    SOCKET_TRIGGER_LIMIT = "socket-trigger-limit", "2c5e8f5fd1a2455aaab07c74e916ae57", Priority.ERROR
    IDLE = "idle", "9d23e1fee4c242079be7befea7a78e7c"
    NOTIFY_REFUSED = "notify-refused", "2d073540b22645c7a8afa059e353b81c", Priority.WARNING
    LIMIT_UNAVAILABLE = "limit-unavailable", "88306f1f78fa46aaa4c3c8ad8a89784c", Priority.WARNING
    DEPENDENCY_FAILED = "dependency-failed", "a00e9b5cc15840b6babb3e2b4586f06b", Priority.ERROR
    DEFINITION_REJECTED = "definition-rejected", "e01908a25ca64c5d9e66e9199010e6ec", Priority.ERROR
    DEFINITION_ACCEPTED = "definition-accepted", "afa33ddaa7d14cf699005ca070ab72b0"
    AGENT_STARTED = "agent-started", "61389ee9ca61412d85228db64ae710c5"
    AGENT_RELOADED = "agent-reloaded", "d4046171099648a5adc592b7d6ba3772"
    AGENT_STOPPING = "agent-stopping", "c7c3f32d94834f6cb4cec3ccf33d78b8"
    AGENT_FAILED = "agent-failed", "2a9818786f904ae0b7b8f3ed66c2a13f", Priority.ERROR
    BUS_LOST = "bus-lost", "3e03fb6300e54d658d9e304930fe4b7f", Priority.WARNING
    BUS_BACK = "bus-back", "7835f80fad6a41e3a039aac892982da1", Priority.NOTICE
    FEATURE_MISSING = "feature-missing", "d520c984ff5941629edc38faff899aef", Priority.NOTICE
    JOURNAL_DROPPED = "journal-dropped", "f0bcfa7806f24a6c8feb18ecd4844ae1", Priority.WARNING
