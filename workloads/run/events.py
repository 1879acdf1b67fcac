"""Names of phases of a rank and of events of a job (docs/run-directory.md)."""

from enum import StrEnum


class Phase(StrEnum):
    """What a rank is doing, in its heartbeat."""

    STARTING = "starting"
    PREPARING = "preparing"
    TRAINING = "training"
    GENERATING = "generating"
    EVALUATING = "evaluating"
    SAVING = "saving"
    EXPORTING = "exporting"
    PUSHING = "pushing"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


class Event(StrEnum):
    """The `event` of a row in events.jsonl."""

    STARTED = "started"
    TRAINING = "training"
    CHECKPOINT = "checkpoint"
    CHECKPOINT_FAILED = "checkpoint failed"
    CLEANUP_FAILED = "cleanup failed"
    CHECKPOINT_DAMAGED = "checkpoint damaged"
    NONFINITE = "nonfinite"
    NO_SIGNAL = "no signal"
    OUT_OF_MEMORY = "oom"
    STOP_REQUESTED = "stop requested"
    RESTARTED = "restarted"
    SUSPENDED = "suspended"
    TRACKER_FAILED = "tracker failed"
    DAMAGED_RECORD = "damaged record"
    EVALUATED = "evaluated"
    EVALUATION_FAILED = "evaluation failed"
    EXPORTED = "exported"
    PUSHED = "pushed"
    PUSH_FAILED = "push failed"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"
