"""data sets, adaptations, deliveries and studies are guarded as jobs are; adaptations count their tries

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op
revision = '0016'
down_revision = '0015'
branch_labels = None
depends_on = None


# As service.core.transitions generated it from each table of legal steps.
GUARD_DATASET = """
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state <> 'pending' THEN
            RAISE check_violation USING MESSAGE = format('a new data set is pending, not %s', NEW.state);
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
        ('pending', 'ready'),
        ('pending', 'invalid'),
        ('invalid', 'pending')
    ) THEN
        RAISE check_violation USING MESSAGE = format('data set %s is %s and can''t become %s', OLD.id, OLD.state, NEW.state);
    END IF;
    IF OLD.state IN ('ready', 'invalid') AND NEW.state = OLD.state AND (NEW.report, NEW.rows, NEW.tasks, NEW.checked_at, NEW.attempt) IS DISTINCT FROM (OLD.report, OLD.rows, OLD.tasks, OLD.checked_at, OLD.attempt) THEN
        RAISE check_violation USING MESSAGE = format('data set %s has %s: its outcome stays as it is', OLD.id, OLD.state);
    END IF;
    IF NEW.attempt < OLD.attempt THEN
        RAISE check_violation USING MESSAGE = format('data set %s: its fence can''t go back from %s', OLD.id, OLD.attempt);
    END IF;
    RETURN NEW;
END
"""
GUARD_ADAPTATION = """
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state <> 'queued' THEN
            RAISE check_violation USING MESSAGE = format('a new adaptation is queued, not %s', NEW.state);
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
        ('queued', 'running'),
        ('running', 'queued'),
        ('running', 'succeeded'),
        ('running', 'failed')
    ) THEN
        RAISE check_violation USING MESSAGE = format('adaptation %s is %s and can''t become %s', OLD.id, OLD.state, NEW.state);
    END IF;
    IF OLD.state IN ('succeeded', 'failed') AND NEW.state = OLD.state AND (NEW.weights_blob_id, NEW.ended_at, NEW.attempt) IS DISTINCT FROM (OLD.weights_blob_id, OLD.ended_at, OLD.attempt) THEN
        RAISE check_violation USING MESSAGE = format('adaptation %s has %s: its outcome stays as it is', OLD.id, OLD.state);
    END IF;
    IF NEW.attempt < OLD.attempt THEN
        RAISE check_violation USING MESSAGE = format('adaptation %s: its fence can''t go back from %s', OLD.id, OLD.attempt);
    END IF;
    RETURN NEW;
END
"""
GUARD_DELIVERY = """
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state <> 'pending' THEN
            RAISE check_violation USING MESSAGE = format('a new delivery is pending, not %s', NEW.state);
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
        ('pending', 'succeeded'),
        ('pending', 'failed'),
        ('succeeded', 'pending'),
        ('failed', 'pending')
    ) THEN
        RAISE check_violation USING MESSAGE = format('delivery %s is %s and can''t become %s', OLD.id, OLD.state, NEW.state);
    END IF;
    IF OLD.state IN ('succeeded', 'failed') AND NEW.state = OLD.state AND (NEW.ended_at, NEW.attempt) IS DISTINCT FROM (OLD.ended_at, OLD.attempt) THEN
        RAISE check_violation USING MESSAGE = format('delivery %s has %s: its outcome stays as it is', OLD.id, OLD.state);
    END IF;
    IF NEW.attempt < OLD.attempt THEN
        RAISE check_violation USING MESSAGE = format('delivery %s: its fence can''t go back from %s', OLD.id, OLD.attempt);
    END IF;
    RETURN NEW;
END
"""
GUARD_STUDY = """
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state <> 'running' THEN
            RAISE check_violation USING MESSAGE = format('a new study is running, not %s', NEW.state);
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
        ('running', 'cancelling'),
        ('running', 'finished'),
        ('cancelling', 'cancelled')
    ) THEN
        RAISE check_violation USING MESSAGE = format('study %s is %s and can''t become %s', OLD.id, OLD.state, NEW.state);
    END IF;
    IF OLD.state IN ('finished', 'cancelled') AND NEW.state = OLD.state AND (NEW.ended_at) IS DISTINCT FROM (OLD.ended_at) THEN
        RAISE check_violation USING MESSAGE = format('study %s has %s: its outcome stays as it is', OLD.id, OLD.state);
    END IF;
    RETURN NEW;
END
"""

GUARDS = {
    'guard_dataset': (GUARD_DATASET, 'datasets', 'state, report, rows, tasks, checked_at, attempt'),
    'guard_adaptation': (GUARD_ADAPTATION, 'adaptations', 'state, weights_blob_id, ended_at, attempt'),
    'guard_delivery': (GUARD_DELIVERY, 'webhook_deliveries', 'state, ended_at, attempt'),
    'guard_study': (GUARD_STUDY, 'studies', 'state, ended_at'),
}
LEASED = ('datasets', 'adaptations')


def upgrade() -> None:
    op.add_column('adaptations', sa.Column('tries', sa.Integer(), server_default='0', nullable=False))
    op.execute("UPDATE adaptations SET tries = attempt")
    # The reconciler asks every second whether a lease has lapsed, and shouldn't read whole tables for it.
    for table in LEASED:
        op.create_index(f'ix_{table}_leases', table, ['lease_expires_at'], unique=False,
            postgresql_where=sa.text('lease_expires_at IS NOT NULL'))
    for name, (body, table, columns) in GUARDS.items():
        op.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $guard${body}$guard$")
        op.execute(
            f"CREATE TRIGGER {name} BEFORE INSERT OR UPDATE OF {columns} ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION {name}()"
        )


def downgrade() -> None:
    for name, (_, table, _) in GUARDS.items():
        op.execute(f"DROP TRIGGER {name} ON {table}")
        op.execute(f"DROP FUNCTION {name}()")
    for table in LEASED:
        op.drop_index(f'ix_{table}_leases', table_name=table)
    op.drop_column('adaptations', 'tries')
