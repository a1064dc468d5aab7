-- The journal's tables as version 1 made them: frozen, so that every later version can be led up from here.
CREATE TABLE event (
    id INTEGER NOT NULL, 
    at BIGINT NOT NULL, 
    entity TEXT NOT NULL, 
    entity_id INTEGER NOT NULL, 
    attempt INTEGER NOT NULL, 
    event TEXT NOT NULL, 
    from_state TEXT NOT NULL, 
    to_state TEXT NOT NULL, 
    reason TEXT NOT NULL, 
    PRIMARY KEY (id)
);
CREATE INDEX event_by_entity ON event (entity, entity_id);
CREATE TABLE listener (
    id TEXT NOT NULL, 
    started_at BIGINT NOT NULL, 
    seen_at BIGINT NOT NULL, 
    open_associations INTEGER NOT NULL, 
    PRIMARY KEY (id)
);
CREATE TABLE refused_peer (
    calling_ae_title TEXT NOT NULL, 
    called_ae_title TEXT NOT NULL, 
    address TEXT NOT NULL, 
    reason TEXT NOT NULL, 
    first_at BIGINT NOT NULL, 
    last_at BIGINT NOT NULL, 
    times INTEGER NOT NULL, 
    PRIMARY KEY (calling_ae_title, called_ae_title, address)
);
CREATE TABLE role (
    executor_id TEXT NOT NULL, 
    name TEXT NOT NULL, 
    pid INTEGER NOT NULL, 
    started_at BIGINT NOT NULL, 
    seen_at BIGINT NOT NULL, 
    PRIMARY KEY (executor_id)
);
CREATE TABLE schema_version (
    version INTEGER NOT NULL, 
    at BIGINT NOT NULL, 
    PRIMARY KEY (version)
);
CREATE TABLE series (
    id INTEGER NOT NULL, 
    series_instance_uid TEXT NOT NULL, 
    study_instance_uid TEXT NOT NULL, 
    patient_id TEXT NOT NULL, 
    sender_alias TEXT NOT NULL, 
    calling_ae_title TEXT NOT NULL, 
    called_ae_title TEXT NOT NULL, 
    address TEXT NOT NULL, 
    association_id TEXT NOT NULL, 
    state TEXT NOT NULL, 
    revision INTEGER NOT NULL, 
    attempt INTEGER NOT NULL, 
    starts INTEGER NOT NULL, 
    lease_at BIGINT, 
    arrivals INTEGER NOT NULL, 
    opened_at BIGINT NOT NULL, 
    first_received_at BIGINT NOT NULL, 
    last_received_at BIGINT NOT NULL, 
    evidence TEXT NOT NULL, 
    examine BOOLEAN NOT NULL, 
    gapped BOOLEAN NOT NULL, 
    "conflict" TEXT NOT NULL, 
    settled_at BIGINT, 
    completeness TEXT NOT NULL, 
    wait_s FLOAT NOT NULL, 
    outcome TEXT NOT NULL, 
    reason TEXT NOT NULL, 
    PRIMARY KEY (id), 
    UNIQUE (series_instance_uid)
);
CREATE INDEX series_by_state ON series (state, last_received_at);
CREATE TABLE arriving (
    listener_id TEXT NOT NULL, 
    series_instance_uid TEXT NOT NULL, 
    open_associations INTEGER NOT NULL, 
    last_byte_at BIGINT, 
    PRIMARY KEY (listener_id, series_instance_uid), 
    FOREIGN KEY(listener_id) REFERENCES listener (id)
);
CREATE TABLE instance (
    id INTEGER NOT NULL, 
    series_id INTEGER NOT NULL, 
    sop_instance_uid TEXT NOT NULL, 
    sop_class_uid TEXT NOT NULL, 
    transfer_syntax_uid TEXT NOT NULL, 
    path TEXT NOT NULL, 
    length BIGINT NOT NULL, 
    crc32 BIGINT NOT NULL, 
    sender_alias TEXT NOT NULL, 
    calling_ae_title TEXT NOT NULL, 
    called_ae_title TEXT NOT NULL, 
    address TEXT NOT NULL, 
    association_id TEXT NOT NULL, 
    move_originator TEXT NOT NULL, 
    received_at BIGINT NOT NULL, 
    state TEXT NOT NULL, 
    reason TEXT NOT NULL, 
    replaced_by INTEGER, 
    duplicates INTEGER NOT NULL, 
    purged_at BIGINT, 
    PRIMARY KEY (id), 
    UNIQUE (sop_instance_uid, length, crc32, series_id), 
    FOREIGN KEY(series_id) REFERENCES series (id), 
    UNIQUE (path), 
    FOREIGN KEY(replaced_by) REFERENCES instance (id)
);
CREATE INDEX instance_by_purge ON instance (purged_at, received_at);
CREATE INDEX instance_by_series ON instance (series_id, state);
CREATE TABLE snapshot (
    id INTEGER NOT NULL, 
    series_id INTEGER NOT NULL, 
    revision INTEGER NOT NULL, 
    digest TEXT NOT NULL, 
    evidence TEXT NOT NULL, 
    completeness TEXT NOT NULL, 
    wait_s FLOAT NOT NULL, 
    created_at BIGINT NOT NULL, 
    PRIMARY KEY (id), 
    UNIQUE (series_id, revision), 
    FOREIGN KEY(series_id) REFERENCES series (id)
);
CREATE TABLE job (
    id INTEGER NOT NULL, 
    series_id INTEGER NOT NULL, 
    revision INTEGER NOT NULL, 
    snapshot_id INTEGER NOT NULL, 
    volume_id TEXT NOT NULL, 
    split_keys JSON NOT NULL, 
    pixels INTEGER NOT NULL, 
    rule TEXT NOT NULL, 
    model TEXT NOT NULL, 
    model_digest TEXT NOT NULL, 
    config_digest TEXT NOT NULL, 
    destinations JSON NOT NULL, 
    priority INTEGER NOT NULL, 
    state TEXT NOT NULL, 
    attempt INTEGER NOT NULL, 
    starts INTEGER NOT NULL, 
    lease_at BIGINT, 
    tries INTEGER NOT NULL, 
    reason TEXT NOT NULL, 
    detail TEXT NOT NULL, 
    result JSON NOT NULL, 
    created_at BIGINT NOT NULL, 
    due_at BIGINT NOT NULL, 
    ended_at BIGINT, 
    PRIMARY KEY (id), 
    UNIQUE (series_id, revision, volume_id, model, model_digest, config_digest), 
    FOREIGN KEY(series_id) REFERENCES series (id), 
    FOREIGN KEY(snapshot_id) REFERENCES snapshot (id)
);
CREATE INDEX job_by_snapshot ON job (snapshot_id);
CREATE INDEX job_by_state ON job (state, due_at);
CREATE TABLE member (
    snapshot_id INTEGER NOT NULL, 
    instance_id INTEGER NOT NULL, 
    PRIMARY KEY (snapshot_id, instance_id), 
    FOREIGN KEY(snapshot_id) REFERENCES snapshot (id), 
    FOREIGN KEY(instance_id) REFERENCES instance (id)
);
CREATE INDEX member_by_instance ON member (instance_id);
CREATE TABLE delivery (
    id INTEGER NOT NULL, 
    job_id INTEGER NOT NULL, 
    kind TEXT NOT NULL, 
    destination TEXT NOT NULL, 
    state TEXT NOT NULL, 
    attempt INTEGER NOT NULL, 
    starts INTEGER NOT NULL, 
    lease_at BIGINT, 
    tries INTEGER NOT NULL, 
    reason TEXT NOT NULL, 
    due_at BIGINT NOT NULL, 
    ended_at BIGINT, 
    variant TEXT NOT NULL, 
    sent_sop_instance_uid TEXT NOT NULL, 
    PRIMARY KEY (id), 
    UNIQUE (job_id, destination, kind), 
    FOREIGN KEY(job_id) REFERENCES job (id)
);
CREATE INDEX delivery_by_state ON delivery (state, destination, due_at);
CREATE TABLE part (
    id INTEGER NOT NULL, 
    snapshot_id INTEGER NOT NULL, 
    number INTEGER NOT NULL, 
    volume_id TEXT NOT NULL, 
    frames INTEGER NOT NULL, 
    sop_instance_uids JSON NOT NULL, 
    dropped JSON NOT NULL, 
    split_keys JSON NOT NULL, 
    outcome TEXT NOT NULL, 
    reason TEXT NOT NULL, 
    detail TEXT NOT NULL, 
    rule TEXT NOT NULL, 
    model TEXT NOT NULL, 
    job_id INTEGER, 
    PRIMARY KEY (id), 
    UNIQUE (snapshot_id, number), 
    FOREIGN KEY(snapshot_id) REFERENCES snapshot (id), 
    FOREIGN KEY(job_id) REFERENCES job (id)
);
CREATE TABLE result_object (
    id INTEGER NOT NULL, 
    job_id INTEGER NOT NULL, 
    kind TEXT NOT NULL, 
    variant TEXT NOT NULL, 
    sop_class_uid TEXT NOT NULL, 
    sop_instance_uid TEXT NOT NULL, 
    transfer_syntax_uid TEXT NOT NULL, 
    path TEXT NOT NULL, 
    sha256 TEXT NOT NULL, 
    length BIGINT NOT NULL, 
    purged_at BIGINT, 
    PRIMARY KEY (id), 
    UNIQUE (job_id, kind, variant), 
    FOREIGN KEY(job_id) REFERENCES job (id), 
    UNIQUE (path)
);
