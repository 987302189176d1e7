"""How events become messages to webhooks: by a trigger on `events`, so that no writer of events can omit it.

The deliveries are written in the transaction that writes the event, so they exist if and only if it is committed. The revisions
under migrations/ hold this text as it was when they were written; a test compares what the newest of them installs with what is
generated here.
"""

from __future__ import annotations

from typing import Final

from service.jobs.transitions import STATES

TYPES: Final = tuple(f"job.{state}" for state in STATES)
"""Types of messages that a webhook can receive: a job has changed to that state."""
TEST: Final = "webhook.test"
"""The type of test messages."""


FUNCTION_BODY: Final = """
BEGIN
    INSERT INTO webhook_deliveries (webhook_id, workspace_id, type, body)
    SELECT webhook.id, webhook.workspace_id, 'job.' || job.state, json_build_object(
        'type', 'job.' || job.state,
        'timestamp', to_char(NEW.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'data', json_build_object(
            'id', job.id,
            'name', job.name,
            'tags', job.tags,
            'state', job.state,
            'phase', job.phase,
            'progress', json_build_object(
                'iteration', job.iteration, 'iterations', job.iterations, 'eta_seconds', job.eta_seconds
            ),
            'status_reason', job.status_reason,
            'status_detail', job.status_detail,
            'metrics', job.metrics,
            'initialization', (
                SELECT json_build_object('sha256', sha256, 'size_bytes', size_bytes, 'parameters', job.parameters)
                FROM blobs WHERE blobs.id = job.initialization_blob_id
            ),
            'attempt', job.attempt,
            'study_id', job.study_id,
            'cell', job.cell,
            'created_at', to_char(job.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            'started_at', to_char(job.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            'ended_at', to_char(job.ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            'links', json_build_object('self', '/v1/jobs/' || job.id)
        )
    )::text
    FROM jobs AS job JOIN webhooks AS webhook ON webhook.workspace_id = job.workspace_id
    WHERE job.id = NEW.job_id AND webhook.enabled AND webhook.events ? ('job.' || job.state)
    FOR KEY SHARE OF webhook;
    RETURN NULL;
END
"""
"""PL/pgSQL that writes a delivery for every webhook that wants the event.

The job's members are named as in the API's Job. If a webhook is being deleted at the same time, the trigger waits for that and
then omits it; its lock on other webhooks prevents nothing but their deletion.
"""
