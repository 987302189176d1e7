"""The rows that become possible with each revision of the database, and what its upgrade makes of those before it."""

from __future__ import annotations

FIRST_RELEASE = """
INSERT INTO workspaces (id, name) VALUES (:lab, 'lab'), (:other, 'other');
INSERT INTO workers (id, host, pid, devices) VALUES (:worker, 'here', 4711, '["cpu", "cuda"]');
INSERT INTO leaderships VALUES ('reconciler', :worker, now() + interval '10 seconds');
INSERT INTO outbox (kind, payload, sent_at) VALUES ('wake', '{}', NULL), ('wake', '{"job": 1}', now());
INSERT INTO api_keys (id, workspace_id, name, key_hash, prefix, last_used_at, revoked_at) VALUES
    (:key_1, :lab, 'used', 'a', 'amaml_a', now(), NULL), (:key_2, :other, 'revoked', 'b', 'amaml_b', NULL, now());
INSERT INTO blobs (id, sha256, size_bytes) VALUES
    (:ratings_1, 'aa', 3), (:ratings_2, 'bb', 3), (:ratings_3, 'cc', 3), (:theta, 'dd', 6), (:checkpoint, 'ee', 3),
    (:unfinished, NULL, 0);
INSERT INTO blob_chunks VALUES
    (:ratings_1, 0, 'abc'), (:ratings_2, 0, 'def'), (:ratings_3, 0, 'ghi'), (:theta, 0, '\\x000102'), (:theta, 1, '\\xfffefd'),
    (:checkpoint, 0, 'xyz');
INSERT INTO datasets (id, workspace_id, name, format, sha256, bytes, rows, tasks, state, blob_id) VALUES
    (:dataset_1, :lab, 'films', 'csv', 'aa', 3, 10, 2, 'ready', :ratings_1),
    (:dataset_2, :lab, 'films', 'csv', 'bb', 3, 20, 3, 'ready', :ratings_2),
    (:dataset_3, :other, '', 'movielens-1m', 'cc', 3, 30, 4, 'ready', :ratings_3);
INSERT INTO idempotency_keys (workspace_id, key, request_sha256, response) VALUES
    (:lab, 'mine', 'ab', '{"z": 1, "a": [1.0, null]}'), (:other, 'mine', 'cd', '{}');
INSERT INTO jobs (id, workspace_id, name, tags, spec, spec_sha256, family, method, device, iterations, state, lease_expires_at)
SELECT id, :lab, state, '{"who": "me"}', '{"z": 1, "a": 1e400}', 'ab', 'ratings', 'amaml', 'cpu', 100, state,
    CASE WHEN state IN ('running', 'pausing', 'cancelling') THEN now() + interval '1 minute' END
FROM (VALUES (:queued, 'queued'), (:running, 'running'), (:pausing, 'pausing'), (:paused, 'paused'),
    (:cancelling, 'cancelling'), (:succeeded, 'succeeded'), (:failed, 'failed'), (:cancelled, 'cancelled')
) AS made (id, state);
UPDATE jobs SET dataset_id = :dataset_1, init_from_id = :succeeded WHERE id = :queued;
UPDATE jobs SET worker_id = :worker, attempt = 2, started_at = now(), progress_at = now(), phase = 'training', iteration = 7,
    eta_seconds = 1.5, metrics = '{"meta_loss": 0.5}', runtime = '{"threads": 2}', last_seq = 2 WHERE id = :running;
UPDATE jobs SET initialization_blob_id = :theta, parameters = 3, ended_at = now(), attempt = 1, dataset_id = :dataset_3,
    workspace_id = :other WHERE id = :succeeded;
UPDATE jobs SET init_from_id = NULL WHERE id = :queued;
UPDATE jobs SET init_from_id = :failed WHERE id = :cancelled;
UPDATE jobs SET status_reason = 'diverged', status_detail = 'Take smaller steps.', ended_at = now() WHERE id = :failed;
INSERT INTO attempts (job_id, number, worker_id, host, started_at, ended_at, reason, detail) VALUES
    (:running, 1, :worker, 'there', now() - interval '3 hours', now() - interval '2 hours', 'worker_lost', 'It was lost.'),
    (:running, 2, :worker, 'here', now(), NULL, NULL, NULL),
    (:succeeded, 1, :worker, 'here', now() - interval '1 minute', now(), 'succeeded', NULL),
    (:failed, 1, :worker, 'here', now() - interval '9 days', now() - interval '8 days', 'failed', NULL);
INSERT INTO checkpoints (job_id, step, attempt, blob_id) VALUES (:running, 5, 1, :checkpoint);
INSERT INTO events (job_id, seq, kind, data) VALUES
    (:running, 1, 'state', '{"state": "queued"}'), (:running, 2, 'progress', '{"iteration": 7}');
INSERT INTO metrics VALUES (:running, 'meta_loss', 1, 'NaN'), (:running, 'meta_loss', 2, 0.5);
"""

# From 0002 on a job begins as queued and takes the legal steps alone.
GUARDED = """
INSERT INTO jobs (id, workspace_id, name, tags, spec, spec_sha256, family, method, device, iterations)
VALUES (:guarded, :lab, '', '{}', '{}', '', 'sinusoid', 'amaml', 'auto', 1);
UPDATE jobs SET state = 'running', attempt = 1, lease_expires_at = now() WHERE id = :guarded;
UPDATE jobs SET state = 'succeeded', lease_expires_at = NULL, ended_at = now() WHERE id = :guarded;
"""

CHECKED = """
INSERT INTO blobs (id, sha256, size_bytes) VALUES (:table_1, 'f1', 1), (:table_2, 'f2', 1), (:table_3, 'f3', 1),
    (:images, 'f4', 1);
INSERT INTO datasets (id, workspace_id, name, version, format, families, sha256, bytes, rows, tasks, state, blob_id,
    status_detail, report, attempt, lease_expires_at, checked_at) VALUES
    (:waiting, :lab, 'films', 3, 'csv', '["ratings", "table"]', 'f1', 1, NULL, NULL, 'pending', :table_1,
        NULL, NULL, 1, now() + interval '1 minute', NULL),
    (:good, :lab, 'films', 4, 'csv', '["ratings"]', 'f2', 1, 5, 1, 'ready', :table_2, NULL, '{"tasks": 1}', 1, NULL, now()),
    (:bad, :other, '', 1, 'csv', '["ratings"]', 'f3', 1, NULL, NULL, 'invalid', :table_3,
        'Line 2 is empty.', '{}', 2, NULL, now()),
    (:shapes, :lab, 'shapes', 1, 'safetensors', '["images"]', 'f4', 1, 9, 3, 'ready', :images, NULL, '{}', 1, NULL, now());
INSERT INTO jobs (id, workspace_id, name, tags, spec, spec_sha256, family, method, device, iterations, dataset_id)
VALUES (:waits, :lab, '', '{}', '{}', '', 'ratings', 'amaml', 'auto', 1, :waiting);
"""

SCOPED = """
INSERT INTO api_keys (id, workspace_id, name, key_hash, prefix, scopes, expires_at) VALUES
    (:key_3, :lab, 'everything', 'c', 'amaml_c', '["*"]', NULL), (:key_4, :lab, 'reader', 'd', 'amaml_d', '["jobs:read"]', NULL),
    (:key_5, :lab, 'expires', 'e', 'amaml_e', '["*"]', now() + interval '1 day');
"""

# An event makes a delivery of its own, by the trigger that comes with this revision.
WEBHOOKS = """
INSERT INTO webhooks (id, workspace_id, url, description, events, signature, secret, previous_secret, previous_until, public_key,
    enabled, disabled_reason, failures, failing_since) VALUES
    (:webhook_1, :lab, 'https://example.org/1', 'mine', '["job.running"]', 'hmac', 's', 'before', now(), NULL, true,
        NULL, 0, NULL),
    (:webhook_2, :other, 'https://example.org/2', '', '[]', 'ed25519', 's', NULL, NULL, 'public', false, 'gone', 5, now());
INSERT INTO webhook_deliveries (id, webhook_id, workspace_id, type, body, state, attempt, tries, lease_expires_at,
    ended_at) VALUES
    (:delivery_1, :webhook_1, :lab, 'job.running', '{"type": "job.running"}', 'pending', 1, 1, now(), NULL),
    (:delivery_2, :webhook_1, :lab, 'job.running', '{ }', 'succeeded', 1, 1, NULL, now()),
    (:delivery_3, :webhook_2, :other, 'job.failed', '{}', 'failed', 1, 1, NULL, now());
INSERT INTO webhook_attempts (delivery_id, number, seconds, status, error, response) VALUES
    (:delivery_1, 1, NULL, NULL, NULL, NULL), (:delivery_2, 1, 0.1, 200, NULL, 'fine'),
    (:delivery_3, 1, 5, NULL, 'No answer.', '');
INSERT INTO events (job_id, seq, kind, data) VALUES (:running, 3, 'state', '{"state": "running"}');
"""

STUDIES = """
INSERT INTO studies (id, workspace_id, name, base, grid, concurrency, state, ended_at) VALUES
    (:study_1, :lab, 'grid', '{"z": 1, "a": 2}', '{"/b": [1, 2], "/a": [3]}', 1, 'running', NULL),
    (:study_2, :lab, '', '{}', '{}', 2, 'cancelling', NULL), (:study_3, :other, '', '{}', '{}', 2, 'finished', now()),
    (:study_4, :other, '', '{}', '{}', 2, 'cancelled', now());
INSERT INTO jobs (id, workspace_id, name, tags, spec, spec_sha256, family, method, device, iterations, study_id, cell_number,
    cell, held, status_reason) VALUES
    (:cell_1, :lab, 'cell', '{}', '{}', '', 'sinusoid', 'amaml', 'auto', 1, :study_1, 0, '{"/b": 1, "/a": 3}', false, NULL),
    (:cell_2, :lab, 'cell', '{}', '{}', '', 'sinusoid', 'amaml', 'auto', 1, :study_1, 1, '{"/b": 2, "/a": 3}', true,
        'study_turn');
INSERT INTO evaluations VALUES (:running, 5, 'nrmse', false, '{"flow": [0.1, 0.2]}', '{"mean": [1]}', NULL),
    (:succeeded, 100, 'accuracy', true, '{}', '{}', '{"times": [0, 1]}');
"""

WALLED_OFF = """
INSERT INTO blobs (id, workspace_id, sha256, size_bytes) VALUES (:weights, :lab, 'ff', 0), (:nobodys, NULL, NULL, 0);
"""

# The second webhook message is the newer function's, which names the study.
NAMED_STUDIES = """
INSERT INTO events (job_id, seq, kind, data) VALUES (:running, 4, 'state', '{"state": "running"}');
"""

ADAPTATIONS = """
INSERT INTO adaptations (id, workspace_id, job_id, by, request, state, status_reason, status_detail, result, weights_blob_id,
    attempt, lease_expires_at, started_at, ended_at) VALUES
    (:adaptation_1, :other, :succeeded, 'flow', '{"z": 1, "a": 2}', 'queued', NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL),
    (:adaptation_2, :other, :succeeded, 'flow', '{}', 'running', NULL, NULL, NULL, NULL, 1, now(), now(), NULL),
    (:adaptation_3, :other, :succeeded, 'flow', '{}', 'succeeded', NULL, NULL, '{"loss": 1}', :weights, 1, NULL, now(), now()),
    (:adaptation_4, :lab, :guarded, 'finetune', '{}', 'failed', 'diverged', 'Try less.', NULL, NULL, 3, NULL, now(), now());
"""

QUOTAS = """
UPDATE workspaces SET quotas = '{"queued_jobs": 5, "stored_bytes": null}' WHERE id = :other;
UPDATE jobs SET estimated_seconds = 12.5 WHERE id = :queued;
INSERT INTO compute_use VALUES (:lab, date_trunc('hour', now()) + interval '1 hour', 7.5);
"""

TRAINERS = """
UPDATE attempts SET trainer_pid = 4712 WHERE job_id = :running AND number = 2;
"""

GPUS = """
UPDATE workers SET gpu = '{"name": "NVIDIA H100", "memory_bytes": 85899345920, "uuid": "GPU-1"}' WHERE id = :worker;
UPDATE jobs SET gpu = 'NVIDIA H100', device = 'cuda' WHERE id = :queued;
"""

# From 0016 on these take the legal steps alone, too.
GUARDED_TOO = """
INSERT INTO blobs (id, sha256, size_bytes) VALUES (:late, 'f5', 1);
INSERT INTO datasets (id, workspace_id, name, format, families, sha256, bytes, blob_id)
VALUES (:late_data, :lab, '', 'csv', '["table"]', 'f5', 1, :late);
UPDATE datasets SET state = 'ready', report = '{}', checked_at = now() WHERE id = :late_data;
INSERT INTO adaptations (id, workspace_id, job_id, by, request) VALUES (:adaptation_5, :other, :succeeded, 'flow', '{}');
UPDATE adaptations SET state = 'running', attempt = 2, tries = 1, lease_expires_at = now() WHERE id = :adaptation_5;
"""

ROWS = {
    "0001": FIRST_RELEASE,
    "0002": GUARDED,
    "0003": CHECKED,
    "0004": SCOPED,
    "0005": WEBHOOKS,
    "0006": STUDIES,
    "0007": WALLED_OFF,
    "0008": NAMED_STUDIES,
    "0009": ADAPTATIONS,
    "0010": QUOTAS,
    "0012": TRAINERS,
    "0014": GPUS,
    "0016": GUARDED_TOO,
}
"""Revision → statements that insert what becomes possible with it; none where it adds no tables, columns or states.

A name after a colon is the id of a row, the same one everywhere.
"""

FILLS = {
    "0003": [
        """SELECT families = '["ratings"]' AND checked_at = created_at AND attempt = 0 FROM datasets""",
        "SELECT version = (SELECT count(*) FROM datasets AS before WHERE before.workspace_id = datasets.workspace_id "
        "AND before.name = datasets.name AND before.id <= datasets.id) FROM datasets WHERE name <> ''",
        "SELECT version = 1 FROM datasets WHERE name = ''",
    ],
    "0004": ["""SELECT scopes = '["*"]' AND expires_at IS NULL FROM api_keys"""],
    "0006": ["SELECT NOT held AND study_id IS NULL AND cell_number IS NULL FROM jobs"],
    "0007": [
        "SELECT blobs.workspace_id = datasets.workspace_id FROM blobs JOIN datasets ON datasets.blob_id = blobs.id",
        "SELECT blobs.workspace_id = jobs.workspace_id FROM blobs JOIN jobs ON initialization_blob_id = blobs.id",
        "SELECT blobs.workspace_id = jobs.workspace_id FROM checkpoints JOIN blobs ON blobs.id = blob_id "
        "JOIN jobs ON jobs.id = job_id",
        "SELECT workspace_id IS NULL FROM blobs WHERE sha256 IS NULL",
    ],
    "0010": [
        "SELECT quotas = '{}' FROM workspaces",
        "SELECT estimated_seconds IS NULL FROM jobs",
        # An hour of the lost attempt and a minute of the one that succeeded; the one of last week is over.
        "SELECT sum(seconds) = 3600 FROM compute_use WHERE workspace_id = :lab",
        "SELECT sum(seconds) = 60 FROM compute_use WHERE workspace_id = :other",
    ],
    "0012": ["SELECT trainer_pid IS NULL FROM attempts"],
    "0013": ["SELECT tries = attempt FROM datasets"],
    "0014": ["SELECT gpu IS NULL FROM workers", "SELECT gpu IS NULL FROM jobs"],
    "0016": ["SELECT coalesce(bool_and(tries = attempt), true) FROM adaptations"],
}
"""Revision → what its upgrade makes of the rows that were there, as queries whose every row must be true."""
