"""workspaces take turns at adaptations

Revision ID: 0011
Revises: 0010
"""

from alembic import op
revision = '0011'
down_revision = '0010'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index('ix_adaptations_workspace_id_started_at', 'adaptations', ['workspace_id', 'started_at'], unique=False)


def downgrade() -> None:
    op.drop_index('ix_adaptations_workspace_id_started_at', table_name='adaptations')
