"""messages to webhooks name the job's study and its cell

Revision ID: 0008
Revises: 0007
"""

from alembic import op
revision = '0008'
down_revision = '0007'
branch_labels = None
depends_on = None


# As service.store.webhook_trigger had it.
BODY = """
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
BODY_BEFORE = BODY.replace("            'study_id', job.study_id,\n            'cell', job.cell,\n", "")


def upgrade() -> None:
    op.execute(f"CREATE OR REPLACE FUNCTION tell_webhooks() RETURNS trigger LANGUAGE plpgsql AS $tell${BODY}$tell$")


def downgrade() -> None:
    op.execute(f"CREATE OR REPLACE FUNCTION tell_webhooks() RETURNS trigger LANGUAGE plpgsql AS $tell${BODY_BEFORE}$tell$")
