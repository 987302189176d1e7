"""succeeded jobs may go on: the step back to the queue is legal

Revision ID: 0015
Revises: 0014
"""

from alembic import op
revision = '0015'
down_revision = '0014'
branch_labels = None
depends_on = None


# As service.store.guard generated it from the table of legal steps; before, without the step and what it changes.
BODY = """
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state <> 'queued' THEN
            RAISE check_violation USING MESSAGE = format('a new job is queued, not %s', NEW.state);
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
        ('queued', 'running'),
        ('queued', 'paused'),
        ('queued', 'cancelled'),
        ('running', 'queued'),
        ('running', 'pausing'),
        ('running', 'cancelling'),
        ('running', 'succeeded'),
        ('running', 'failed'),
        ('pausing', 'paused'),
        ('pausing', 'cancelling'),
        ('pausing', 'succeeded'),
        ('pausing', 'failed'),
        ('paused', 'queued'),
        ('succeeded', 'queued'),
        ('paused', 'cancelled'),
        ('cancelling', 'cancelled'),
        ('cancelling', 'succeeded'),
        ('cancelling', 'failed')
    ) THEN
        RAISE check_violation USING MESSAGE = format('job %s is %s and can''t become %s', OLD.id, OLD.state, NEW.state);
    END IF;
    IF OLD.state IN ('succeeded', 'failed', 'cancelled') AND NEW.state = OLD.state AND (NEW.initialization_blob_id, NEW.ended_at, NEW.attempt) IS DISTINCT FROM (OLD.initialization_blob_id, OLD.ended_at, OLD.attempt) THEN
        RAISE check_violation USING MESSAGE = format('job %s has %s: its outcome stays as it is', OLD.id, OLD.state);
    END IF;
    IF NEW.attempt < OLD.attempt THEN
        RAISE check_violation USING MESSAGE = format('job %s: its fence can''t go back from %s', OLD.id, OLD.attempt);
    END IF;
    RETURN NEW;
END
"""
BEFORE = BODY.replace("        ('succeeded', 'queued'),\n", "").replace(" AND NEW.state = OLD.state", "")


def upgrade() -> None:
    op.execute(f"CREATE OR REPLACE FUNCTION guard_job() RETURNS trigger LANGUAGE plpgsql AS $guard${BODY}$guard$")


def downgrade() -> None:
    op.execute(f"CREATE OR REPLACE FUNCTION guard_job() RETURNS trigger LANGUAGE plpgsql AS $guard${BEFORE}$guard$")
