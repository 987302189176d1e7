"""workers and jobs name their GPU

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
revision = '0014'
down_revision = '0013'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('workers', sa.Column('gpu', postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column('jobs', sa.Column('gpu', sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column('jobs', 'gpu')
    op.drop_column('workers', 'gpu')
