//! What the store promises, whichever database is behind it. `one` and `two` are handles of two processes on one database.

use std::collections::BTreeMap;

use futures::future::join_all;
use workflows::contract::{
    BuildInput, BuildResult, BuildStatus, CellDetail, CellHint, CellId, CellState, PoolSettings, PoolView, ProjectName,
    WARM_CELLS, build_workflow_id,
};
use workflows::policy::Warm;

use crate::store::{
    ArchivedLog, AuditFilter, AuditRow, BuildFilter, BuildRow, NewToken, Outcome, PartStart, ProjectRuns,
    ProjectSettings, Question, RunKey, SealedRow, Seen, Store, TagClaim, TokenHash, TokenRow,
};

pub async fn all(one: &Store, two: &Store) {
    projects(one, two).await;
    tokens(one, two).await;
    acts_are_added_and_stay(one, two).await;
    the_first_outcome_wins(one, two).await;
    tags_go_to_the_build_that_started_last(one, two).await;
    a_run_that_ended_stays_ended(one, two).await;
    lists_show_the_newest_run_of_each_build(one).await;
    the_newest_hint_stays(one, two).await;
    sealed_credentials_go_with_their_builds(one).await;
    archived_logs(one).await;
    pools_keep_their_newest_view(one, two).await;
    warmth_is_of_the_newest_cells(one, two).await;
    admit_is_told_everything_at_once_and_news_only_once(one, two).await;
    a_build_that_waits_again_counts_no_longer(one).await;
    a_clone_is_listed_before_it_says_anything(one).await;
    what_a_clone_says_stands_whenever_its_main_cell_spoke(one, two).await;
    a_run_was_placed_on_each_cell_that_it_was_sent_to(one, two).await;
    hints_follow_epoch_and_sequence_whatever_the_clocks_say(one).await;
    starts_are_counted_by_the_minute(one, two).await;
}

async fn projects(one: &Store, two: &Store) {
    let name = "hello".parse().unwrap();
    assert_eq!(one.project(&name).await.unwrap(), None);
    let made = join_all((0..16).map(|i| if i % 2 == 0 { one } else { two }.create_project(&name))).await;
    let first = made[0].as_ref().unwrap();
    assert!(made.iter().all(|other| other.as_ref().unwrap() == first), "one project, one id");
    let settings = ProjectSettings { provenance: Some("max".into()), ..ProjectSettings::default() };
    assert!(two.set_project(&name, &settings).await.unwrap());
    assert_eq!(one.project(&name).await.unwrap().unwrap().settings, settings);
    assert!(!one.set_project(&"absent".parse().unwrap(), &settings).await.unwrap());
    assert_eq!(one.projects().await.unwrap().len(), 1);
}

async fn tokens(one: &Store, two: &Store) {
    let project: ProjectName = "hello".parse().unwrap();
    let new = |principal: &str, issued_by: &str, expires_ms| NewToken {
        principal: principal.parse().unwrap(),
        name: "ci".into(),
        issued_by: issued_by.into(),
        expires_ms,
    };
    let issued = one.issue_token(&new("project/hello:build", "operator", Some(i64::MAX))).await.unwrap();
    assert!(issued.secret.starts_with("kiln_") && issued.secret.len() == 69, "its length is {}", issued.secret.len());
    let hash = TokenHash::of(&issued.secret);
    assert_eq!(two.token(&hash).await.unwrap().as_ref(), Some(&issued.row));
    assert_eq!(two.token(&TokenHash::of("")).await.unwrap(), None);
    let other = one.issue_token(&new("operator", "settings", None)).await.unwrap();
    assert_ne!((&other.secret, &other.row.id), (&issued.secret, &issued.row.id));
    let expired = one.issue_token(&new("project/hello:read", "operator", Some(1))).await.unwrap();
    assert!(!expired.row.is_valid(1) && expired.row.is_valid(0), "it expires at that moment");

    two.note_token_use(&[(issued.row.id.clone(), 20), ("t-absent".into(), 20)]).await.unwrap();
    one.note_token_use(&[(issued.row.id.clone(), 10)]).await.unwrap();
    let listed = one.tokens(Some(&project)).await.unwrap();
    assert_eq!(listed, [TokenRow { used_ms: Some(20), ..issued.row.clone() }], "one that expired is not listed");
    assert_eq!(one.tokens(None).await.unwrap().len(), 2);

    two.revoke_token(&issued.row.id).await.unwrap();
    let revoked = one.token(&hash).await.unwrap().unwrap();
    assert!(!revoked.is_valid(0) && one.tokens(Some(&project)).await.unwrap().is_empty());
    one.revoke_token(&issued.row.id).await.unwrap();
    assert_eq!(two.token_of_id(&issued.row.id).await.unwrap(), Some(revoked), "the first revocation stands");

    let cell = one.replace_token(&new("cell/c-1", "host/h-1", None)).await.unwrap().unwrap();
    let again = one.replace_token(&new("cell/c-1", "host/h-1", None)).await.unwrap().unwrap();
    assert!(!one.token_of_id(&cell.row.id).await.unwrap().unwrap().is_valid(0), "the former one is void");
    assert_eq!(two.replace_token(&new("cell/c-1", "host/h-2", None)).await.unwrap(), None, "another host's cell");
    assert!(one.token_of_id(&again.row.id).await.unwrap().unwrap().is_valid(0), "and nothing has changed");
    one.revoke_token(&again.row.id).await.unwrap();
    assert!(two.replace_token(&new("cell/c-1", "host/h-2", None)).await.unwrap().is_some(), "once it is free");

    one.forget_tokens(2).await.unwrap();
    assert_eq!(two.token_of_id(&expired.row.id).await.unwrap(), None);
    assert!(two.token_of_id(&other.row.id).await.unwrap().is_some());
}

async fn a_run_was_placed_on_each_cell_that_it_was_sent_to(one: &Store, two: &Store) {
    let cells: Vec<CellId> = ["c-1", "c-10", "c-2"].map(|cell| cell.parse().unwrap()).into();
    let row = build("moves", "run-1", 5);
    one.record_start(&row).await.unwrap();
    let on = |cell: &CellId| BuildRow { cell: Some(cell.clone()), ..row.clone() };
    let placed = async |store: &Store| {
        join_all(cells.iter().map(|cell| async { store.was_placed_on(&row.run(), cell).await.unwrap() })).await
    };
    assert_eq!(placed(one).await, [false, false, false]);
    for _ in 0..2 {
        one.record_build(&on(&cells[1])).await.unwrap();
        assert_eq!(placed(two).await, [false, true, false], "c-1 is not c-10");
    }
    two.record_waiting(&row).await.unwrap();
    two.record_build(&on(&cells[2])).await.unwrap();
    assert_eq!(placed(one).await, [false, true, true]);
    let absent = RunKey { run_id: "run-2".into(), ..row.run() };
    assert!(!one.was_placed_on(&absent, &cells[1]).await.unwrap());
    one.record_build(&BuildRow { status: BuildStatus::Failed, ended_ms: Some(9), ..row.clone() }).await.unwrap();
}

async fn acts_are_added_and_stay(one: &Store, two: &Store) {
    let project: ProjectName = "hello".parse().unwrap();
    let act = |id: &str, at_ms, project: Option<&ProjectName>| AuditRow {
        id: id.into(),
        at_ms,
        principal: "operator".into(),
        token: "settings".into(),
        action: "POST /v1/tokens".into(),
        subject: String::new(),
        project: project.cloned(),
        result: "ok".into(),
        note: "n".repeat(10),
    };
    let rows = [act("b", 1, None), act("a", 2, Some(&project)), act("c", 2, None)];
    for row in rows.iter().rev() {
        one.record_audit(row).await.unwrap();
    }
    two.record_audit(&AuditRow { principal: "another".into(), ..rows[0].clone() }).await.unwrap();
    let list = async |filter: AuditFilter| two.audit(&AuditFilter { limit: 10, ..filter }).await.unwrap();
    assert_eq!(list(AuditFilter::default()).await, rows, "the oldest first, and what is there stays");
    assert_eq!(list(AuditFilter { since_ms: 2, ..AuditFilter::default() }).await, rows[1..]);
    let after = Some((2, "a".to_owned()));
    assert_eq!(list(AuditFilter { after, ..AuditFilter::default() }).await, rows[2..]);
    assert_eq!(list(AuditFilter { project: Some(project.clone()), ..AuditFilter::default() }).await, rows[1..2]);
    one.record_audit(&AuditRow { note: "é".repeat(2000), ..act("d", 3, None) }).await.unwrap();
    let long = list(AuditFilter { since_ms: 3, ..AuditFilter::default() }).await.remove(0);
    assert_eq!(long.note, "é".repeat(1024), "a text is cut between two characters");
}

async fn the_first_outcome_wins(one: &Store, two: &Store) {
    let contenders: Vec<Outcome> = (0..24).map(|i| outcome(&format!("run-{i}"))).collect();
    let fixed =
        join_all(contenders.iter().enumerate().map(|(i, new)| if i % 2 == 0 { one } else { two }.fix_outcome(new)));
    let fixed: Vec<Outcome> = fixed.await.into_iter().map(Result::unwrap).collect();
    let winner = &fixed[0];
    assert!(contenders.contains(winner), "the winner is one of the contenders, whole");
    assert!(fixed.iter().all(|seen| seen == winner), "everyone sees the same winner");

    let mut published = winner.result.clone();
    published.image = Some("registry/hello@sha256:0".into());
    two.mark_published(&winner.project, &winner.key, &published).await.unwrap();
    let mut late = published.clone();
    late.image = Some("other".into());
    one.mark_published(&winner.project, &winner.key, &late).await.unwrap();
    let standing = one.outcome(&winner.project, &winner.key).await.unwrap().unwrap();
    assert!(standing.published);
    assert_eq!(standing.result, published, "a published outcome does not change");
}

async fn tags_go_to_the_build_that_started_last(one: &Store, two: &Store) {
    let tag = "registry:5000/hello:latest";
    assert_eq!(one.claim_tag(tag, 100, "build/hello/a", "run-a").await.unwrap(), TagClaim::Ours);
    assert_eq!(one.claim_tag(tag, 100, "build/hello/a", "run-a").await.unwrap(), TagClaim::Ours, "a claim repeats");
    assert_eq!(
        two.claim_tag(tag, 100, "build/hello/b", "run-b").await.unwrap(),
        TagClaim::Ours,
        "run ids break the tie"
    );
    let superseded = TagClaim::Superseded { by: "build/hello/b".into(), run_id: "run-b".into() };
    assert_eq!(one.claim_tag(tag, 100, "build/hello/a", "run-a").await.unwrap(), superseded);
    assert_eq!(one.claim_tag(tag, 99, "build/hello/z", "run-z").await.unwrap(), superseded);

    let claims = join_all((0..40).map(|i| {
        let store = if i % 2 == 0 { one } else { two };
        async move { store.claim_tag(tag, 1000 + i, "build/hello/many", &format!("run-{i}")).await.unwrap() }
    }));
    let last = claims.await.pop().unwrap();
    assert_eq!(last, TagClaim::Ours, "nobody started later than the last");
    assert!(
        matches!(one.claim_tag(tag, 1038, "x", "run-38").await.unwrap(), TagClaim::Superseded { run_id, .. } if run_id == "run-39")
    );
}

async fn a_run_that_ended_stays_ended(one: &Store, two: &Store) {
    let queued = build("ends", "run-1", 10);
    one.record_start(&queued).await.unwrap();
    let running = BuildRow {
        status: BuildStatus::Running,
        cell: Some("cell-1".parse().unwrap()),
        started_ms: Some(12),
        ..queued.clone()
    };
    two.record_build(&running).await.unwrap();
    one.record_start(&queued).await.unwrap();
    assert_eq!(
        one.build(&queued.workflow_id).await.unwrap(),
        Some(running.clone()),
        "a late start note changes nothing"
    );

    let closed = BuildRow { status: BuildStatus::Failed, ended_ms: Some(20), cell: None, ..running.clone() };
    one.record_build(&closed).await.unwrap();
    two.record_build(&running).await.unwrap();
    let row = one.run(&queued.run()).await.unwrap().unwrap();
    assert_eq!((row.status, row.ended_ms, row.cell.is_some()), (BuildStatus::Failed, Some(20), true));

    let told = BuildRow { result: Some(result(BuildStatus::Failed)), ..closed.clone() };
    two.record_build(&told).await.unwrap();
    let other = BuildRow { status: BuildStatus::Succeeded, result: Some(result(BuildStatus::Succeeded)), ..closed };
    two.record_build(&other).await.unwrap();
    let row = one.run(&queued.run()).await.unwrap().unwrap();
    assert_eq!(row.result, Some(result(BuildStatus::Failed)), "a result is added once and then stays");
    let states = one.run_states(&[queued.run(), RunKey { run_id: "absent".into(), ..queued.run() }]).await.unwrap();
    assert_eq!(states, [(queued.run(), BuildStatus::Failed)]);
}

async fn lists_show_the_newest_run_of_each_build(one: &Store) {
    for row in [build("again", "run-b", 100), build("again", "run-a", 200), build("other", "run-c", 150)] {
        one.record_start(&row).await.unwrap();
    }
    let listed = one.builds(&BuildFilter { limit: 10, ..BuildFilter::default() }).await.unwrap();
    let keys: Vec<_> = listed.iter().map(|row| (row.key.as_str(), row.run_id.as_str())).collect();
    assert_eq!(keys, [("again", "run-a"), ("other", "run-c"), ("ends", "run-1")]);
    assert_eq!(one.build("build/hello/again").await.unwrap().unwrap().run_id, "run-a");
    let runs = one.runs("build/hello/again").await.unwrap();
    assert_eq!(runs.iter().map(|row| row.run_id.as_str()).collect::<Vec<_>>(), ["run-a", "run-b"]);

    let failed = BuildFilter { status: Some(BuildStatus::Failed), limit: 10, ..BuildFilter::default() };
    assert_eq!(one.builds(&failed).await.unwrap().len(), 1);
    let elsewhere = BuildFilter { project: Some("elsewhere".parse().unwrap()), limit: 10, status: None };
    assert_eq!(one.builds(&elsewhere).await.unwrap(), []);
    assert_eq!(one.builds(&BuildFilter { limit: 1, ..BuildFilter::default() }).await.unwrap().len(), 1);
    let mut after = (i64::MIN, String::new());
    for expected in [&["run-b"][..], &["run-c"], &[]] {
        let open = one.open_runs(160, &after, 1).await.unwrap();
        assert_eq!(open.iter().map(|row| row.run_id.as_str()).collect::<Vec<_>>(), expected);
        after = open.last().map_or(after, |row| (row.created_ms, row.run_id.clone()));
    }
}

async fn the_newest_hint_stays(one: &Store, two: &Store) {
    let reports = join_all((0..20).map(|i| {
        let store = if i % 2 == 0 { one } else { two };
        async move { store.report_cell(&hint("cell-1", 1000 + i)).await.unwrap() }
    }));
    reports.await;
    one.report_cell(&hint("cell-0", 7)).await.unwrap();
    let cells = two.cells(&"default".parse().unwrap()).await.unwrap();
    assert_eq!(cells, [hint("cell-0", 7), hint("cell-1", 1019)]);
    assert_eq!(two.cells(&"other".parse().unwrap()).await.unwrap(), []);
    assert_eq!(two.all_cells().await.unwrap(), cells);
}

/// A hint that looked far newer than it was must not take its cell out of service: neither by its time nor by its numbers.
async fn hints_follow_epoch_and_sequence_whatever_the_clocks_say(one: &Store) {
    let now = 1_700_000_000_000;
    let said = |epoch, sequence, reported_ms| CellHint { epoch, sequence, reported_ms, ..hint("cell-clocks", 4) };
    let kept = async |epoch, sequence, reported_ms| one.report_cell(&said(epoch, sequence, reported_ms)).await.unwrap();
    assert!(kept(3, 5, now).await);
    assert!(!kept(3, 4, now + 1).await, "an earlier one of the same epoch that arrives late");
    assert!(!kept(2, 9, now + 2).await, "one of a former start");
    assert!(kept(3, 5, now + 3).await && kept(3, 6, now + 3).await && kept(4, 1, now + 4).await);
    let ahead = now + 400 * 24 * 3_600_000;
    assert!(kept(4, 2, ahead).await, "received while the api's own clock was a year ahead");
    assert!(kept(4, 1, now + 5).await, "and the clock is right again");
    let top = workflows::contract::COUNT_MAX;
    assert!(kept(top, top, now + 6).await);
    assert!(!kept(4, 3, now + 7).await);
    assert!(kept(1, 1, now + 6 + 30_001).await, "a new disk: epochs begin again, and nothing else was heard for 30 s");
    let found = one.all_cells().await.unwrap().into_iter().find(|hint| hint.cell.as_str() == "cell-clocks").unwrap();
    assert_eq!((found.epoch, found.sequence), (1, 1));
}

async fn a_clone_is_listed_before_it_says_anything(one: &Store) {
    let (main, clone) = ("cell-1".parse().unwrap(), "cell-1-copy".parse().unwrap());
    let seen = async || one.all_cells().await.unwrap().into_iter().find(|hint| hint.cell == clone);
    one.introduce_clone(&clone, &"nobody".parse().unwrap()).await.unwrap();
    assert_eq!(seen().await, None);
    one.introduce_clone(&clone, &main).await.unwrap();
    let told = seen().await.unwrap();
    assert_eq!((told.state, told.platform, told.epoch), (CellState::Provisioning, hint("cell-1", 1).platform, 0));
    let own = CellHint { cell: clone.clone(), ..hint("cell-1", told.reported_ms + 1) };
    one.report_cell(&own).await.unwrap();
    one.introduce_clone(&clone, &main).await.unwrap();
    assert_eq!(seen().await, Some(own), "its own word stands");
}

async fn what_a_clone_says_stands_whenever_its_main_cell_spoke(one: &Store, two: &Store) {
    let main = "cell-1".parse().unwrap();
    let spoke = one.all_cells().await.unwrap().into_iter().find(|hint| hint.cell == main).unwrap().reported_ms;
    let seen = async |name: &str| {
        let all = two.all_cells().await.unwrap();
        all.into_iter().find(|hint| hint.cell.as_str() == name).unwrap()
    };
    let own = hint("cell-1-late", spoke - 1);
    one.introduce_clone(&own.cell, &main).await.unwrap();
    one.report_cell(&own).await.unwrap();
    assert_eq!(seen("cell-1-late").await, own, "its first word, although its main cell's was later");
    // And whichever of the two is first.
    for n in 0..16 {
        let own = hint(&format!("cell-1-{n}"), spoke - 1);
        let (introduced, reported) = futures::join!(one.introduce_clone(&own.cell, &main), two.report_cell(&own));
        introduced.and(reported).unwrap();
        assert_eq!(seen(own.cell.as_str()).await, own);
    }
}

async fn sealed_credentials_go_with_their_builds(one: &Store) {
    let (hello, other) = ("hello".parse().unwrap(), "other".parse().unwrap());
    let own = one.create_project(&hello).await.unwrap().id;
    let foreign = one.create_project(&other).await.unwrap().id;
    let row = |project_id: &workflows::contract::ProjectId, name: &str| SealedRow {
        project_id: project_id.clone(),
        secrets_ref: name.parse().unwrap(),
    };
    for name in ["unused", "open", "won", "lost", "shared", "named"] {
        one.record_sealed(&row(&own, name)).await.unwrap();
    }
    // The same reference of another project is another one.
    one.record_sealed(&row(&foreign, "won")).await.unwrap();
    for (project, key, name, status, ended_ms) in [
        (&hello, "open", "open", BuildStatus::Running, None),
        (&hello, "won", "won", BuildStatus::Succeeded, Some(i64::MAX - 1)),
        (&hello, "lost", "lost", BuildStatus::Failed, Some(i64::MAX / 2)),
        (&hello, "first", "shared", BuildStatus::Succeeded, Some(i64::MAX / 2)),
        (&hello, "second", "shared", BuildStatus::Publishing, None),
        (&other, "thief", "named", BuildStatus::Succeeded, Some(1)),
    ] {
        let row = BuildRow { status, ended_ms, ..build(key, "run-s", 1) };
        let mut row = BuildRow { workflow_id: build_workflow_id(project, &row.key), project: project.clone(), ..row };
        row.input.secrets_ref = Some(name.parse().unwrap());
        one.record_build(&row).await.unwrap();
    }
    let due = async |now, keep| -> Vec<String> {
        let due = one.sealed_to_delete(now, keep).await.unwrap();
        let of = |id| if id == own { "hello" } else { "other" };
        let named = due.into_iter().map(|row| format!("{}/{}", of(row.project_id), row.secrets_ref));
        let mut names: Vec<String> = named.collect();
        names.sort();
        names
    };
    assert_eq!(due(0, 1).await, ["hello/won"], "nothing is old yet, and another project's build deletes nothing");
    let old = due(i64::MAX / 4, 1).await;
    assert_eq!(old, ["hello/named", "hello/unused", "hello/won", "other/won"]);
    let later = due(i64::MAX - 10, 1).await;
    assert_eq!(
        later,
        ["hello/lost", "hello/named", "hello/unused", "hello/won", "other/won"],
        "open builds keep theirs"
    );

    let (won, named) = ("won".parse().unwrap(), "named".parse().unwrap());
    assert!(one.has_sealed(&hello, &named).await.unwrap());
    assert!(!one.has_sealed(&other, &named).await.unwrap(), "a name is no access");
    one.forget_sealed(&row(&own, "won")).await.unwrap();
    assert!(!one.has_sealed(&hello, &won).await.unwrap());
    assert!(one.has_sealed(&other, &won).await.unwrap());
    assert_eq!(due(0, 1).await, [""; 0]);
}

async fn starts_are_counted_by_the_minute(one: &Store, two: &Store) {
    let (project, minute) = ("hello".parse().unwrap(), 28_333_333);
    let counted = join_all((0..40).map(|n| {
        let store = if n % 2 == 0 { one } else { two };
        store.count_start(&project, minute, 5)
    }));
    assert_eq!(counted.await.into_iter().filter(|counted| *counted.as_ref().unwrap()).count(), 5);
    assert!(!one.count_start(&project, minute - 1, 5).await.unwrap(), "another api whose clock is a little behind");
    assert!(one.count_start(&project, minute + 1, 5).await.unwrap());
    assert!(one.count_start(&project, minute + 1000, 1).await.unwrap(), "a clock that is far ahead");
    assert!(one.count_start(&project, minute + 2, 1).await.unwrap(), "does not close the project until then");
    assert!(!one.count_start(&project, minute + 2, 1).await.unwrap());
    assert!(two.count_start(&"elsewhere".parse().unwrap(), minute + 2, 1).await.unwrap());
}

async fn archived_logs(one: &Store) {
    let run = RunKey { workflow_id: "build/hello/ends".into(), run_id: "run-1".into() };
    assert_eq!(one.archived_log(&run).await.unwrap(), None);
    let starts = vec![PartStart { part: 0, position: 0, attempt: None }];
    let attempts = BTreeMap::from([("ref".into(), 11)]);
    let log = ArchivedLog { parts: 1, lines: 12, attempts, steps: Some("[]".into()), starts };
    one.record_archived_log(&run, &log).await.unwrap();
    let grown = ArchivedLog { parts: 2, lines: 15, ..log.clone() };
    one.record_archived_log(&run, &grown).await.unwrap();
    one.record_archived_log(&run, &log).await.unwrap();
    assert_eq!(one.archived_log(&run).await.unwrap(), Some(grown));
}

fn view(pool: &str, version: u64) -> PoolView {
    let (settings, members) = (PoolSettings::default(), Vec::new());
    PoolView { pool: pool.parse().unwrap(), version, settings, members }
}

async fn pools_keep_their_newest_view(one: &Store, two: &Store) {
    let name = "default".parse().unwrap();
    assert_eq!(one.pool_view(&name).await.unwrap(), None);
    for (version, stands) in [(2, 2), (5, 5), (3, 5), (5, 5)] {
        assert_eq!(one.write_pool(&view("default", version)).await.unwrap(), stands);
    }
    two.write_pool(&view("another", 1)).await.unwrap();
    assert_eq!(two.pool_view(&name).await.unwrap(), Some(view("default", 5)));
    assert_eq!(one.pool_views().await.unwrap(), [view("another", 1), view("default", 5)]);
}

fn warm(cell: &str, generation: u64) -> Warm {
    Warm { cell: cell.parse().unwrap(), generation }
}

async fn warmth_is_of_the_newest_cells(one: &Store, two: &Store) {
    let (project, platform) = ("hello".parse().unwrap(), "linux/amd64".parse().unwrap());
    for n in 0..WARM_CELLS + 3 {
        // Times are in milliseconds: each record is a newer one than the last.
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        if n % 2 == 0 { one } else { two }.record_warm(&project, &platform, &warm(&format!("w{n}"), 1)).await.unwrap();
    }
    let cells: Vec<String> = one.warm(&project, &platform).await.unwrap().iter().map(|w| w.cell.to_string()).collect();
    let newest: Vec<String> = (3..WARM_CELLS + 3).rev().map(|n| format!("w{n}")).collect();
    assert_eq!(cells, newest);
    one.record_warm(&project, &platform, &warm("w4", 2)).await.unwrap();
    let renewed = two.warm(&project, &platform).await.unwrap();
    assert!(renewed.contains(&warm("w4", 2)) && !renewed.contains(&warm("w4", 1)), "one record a cell: {renewed:?}");
    assert_eq!(one.warm(&project, &"linux/arm64".parse().unwrap()).await.unwrap(), []);
}

async fn admit_is_told_everything_at_once_and_news_only_once(one: &Store, two: &Store) {
    let (project, key, platform) = ("hello".parse().unwrap(), "k/1".parse().unwrap(), "linux/amd64".parse().unwrap());
    let at = |cell: &str, row: BuildRow| BuildRow { cell: Some(cell.parse().unwrap()), ..row };
    let mut question = Question {
        project: &project,
        key: &key,
        platform: &platform,
        run_id: "run-o2",
        started_ms: 301,
        seen: Seen::NOTHING,
    };
    let before = one.facts(&question).await.unwrap().project_runs;
    for row in [at("cell-1", build("o1", "run-o1", 300)), at("cell-1", build("o2", "run-o2", 301))] {
        one.record_build(&row).await.unwrap();
    }
    let mut theirs = at("cell-1", build("o3", "run-o3", 302));
    (theirs.project, theirs.workflow_id) = ("other".parse().unwrap(), "build/other/o3".into());
    two.record_build(&theirs).await.unwrap();
    one.order_cell(&"cell-0".parse().unwrap(), CellState::Draining, &CellDetail::default()).await.unwrap();

    let facts = one.facts(&question).await.unwrap();
    assert_eq!(facts.outcome, one.outcome(&project, &key).await.unwrap());
    assert!(facts.outcome.is_some_and(|outcome| outcome.published));
    assert_eq!(facts.project, one.project(&project).await.unwrap());
    assert_eq!(facts.warm.len(), WARM_CELLS);
    assert_eq!(facts.open.get(&"cell-1".parse().unwrap()), Some(&2), "not the one that asks");
    assert_eq!(facts.project_runs, ProjectRuns { placed: before.placed + 1, ..before });
    let hints: Vec<&str> = facts.news.hints.iter().map(|(_, hint)| hint.cell.as_str()).collect();
    assert_eq!(hints.len(), 2, "{hints:?}");
    assert_eq!(facts.news.orders.len(), 1);
    assert_eq!(facts.news.pools.iter().filter(|(.., view)| view.is_some()).count(), 2);

    let most = |numbers: Vec<i64>| numbers.into_iter().max().unwrap();
    // Far enough that nothing is told again in case it was missed.
    question.seen = Seen {
        cells: 100 + most(facts.news.hints.iter().map(|(seq, _)| *seq).collect()),
        orders: 100 + most(facts.news.orders.iter().map(|(seq, ..)| *seq).collect()),
        pools: most(facts.news.pools.iter().map(|(seq, ..)| *seq).collect()),
    };
    let quiet = two.facts(&question).await.unwrap().news;
    assert!(quiet.hints.is_empty() && quiet.orders.is_empty());
    assert!(quiet.pools.iter().all(|(.., view)| view.is_none()) && quiet.pools.len() == 2, "their names all the same");
    one.write_pool(&view("another", 2)).await.unwrap();
    let news = two.facts(&question).await.unwrap().news;
    let changed: Vec<_> = news.pools.iter().filter_map(|(.., view)| view.clone()).collect();
    assert_eq!(changed, [view("another", 2)]);
}

async fn a_build_that_waits_again_counts_no_longer(one: &Store) {
    let project = "hello".parse().unwrap();
    let before = one.placed_runs(&project).await.unwrap();
    let mut row = build("withdrawn", "run-w", 400);
    row.cell = Some("cell-1".parse().unwrap());
    one.record_build(&row).await.unwrap();
    assert_eq!(one.placed_runs(&project).await.unwrap(), before + 1);
    let (key, platform) = ("later".parse().unwrap(), "linux/amd64".parse().unwrap());
    let question = Question {
        project: &project,
        key: &key,
        platform: &platform,
        run_id: "run-l",
        started_ms: 500,
        seen: Seen::NOTHING,
    };
    let held = one.facts(&question).await.unwrap().project_runs;
    one.record_pick_up(&row.run()).await.unwrap();
    row.cell = None;
    one.record_waiting(&row).await.unwrap();
    assert_eq!(one.placed_runs(&project).await.unwrap(), before);
    let waits = one.facts(&question).await.unwrap().project_runs;
    assert_eq!(waits, ProjectRuns { placed: held.placed - 1, ahead: held.ahead + 1 });
    let mut later = build("later", "run-l", 500);
    later.cell = None;
    one.record_start(&later).await.unwrap();
    let waits = one.longest_waiting(&project).await.unwrap().unwrap();
    let waiting = one.run(&waits).await.unwrap().unwrap();
    assert!(waiting.cell.is_none() && waiting.created_ms <= 400, "{waiting:?}");
    assert_eq!(one.run(&row.run()).await.unwrap().unwrap().status, BuildStatus::Queued);
}

fn input() -> BuildInput {
    let snapshot = "0".repeat(64);
    serde_json::from_value(serde_json::json!({ "project": "hello", "snapshot": snapshot, "tags": ["r/hello:1"] }))
        .unwrap()
}

fn result(status: BuildStatus) -> BuildResult {
    serde_json::from_value(serde_json::json!({ "status": status })).unwrap()
}

fn outcome(run_id: &str) -> Outcome {
    Outcome {
        project: "hello".parse().unwrap(),
        key: "k/1".parse().unwrap(),
        workflow_id: "build/hello/k/1".into(),
        run_id: run_id.into(),
        input_digest: format!("digest of {run_id}"),
        input: input(),
        result: result(BuildStatus::Succeeded),
        published: false,
        started_ms: 5,
    }
}

fn build(key: &str, run_id: &str, created_ms: i64) -> BuildRow {
    let (project, key) = ("hello".parse().unwrap(), key.parse().unwrap());
    BuildRow {
        workflow_id: build_workflow_id(&project, &key),
        run_id: run_id.into(),
        project,
        key,
        status: BuildStatus::Queued,
        input: input(),
        result: None,
        cell: None,
        created_ms,
        started_ms: None,
        ended_ms: None,
    }
}

fn hint(cell: &str, reported_ms: u64) -> CellHint {
    CellHint {
        cell: cell.parse().unwrap(),
        pool: "default".parse().unwrap(),
        platform: "linux/amd64".parse().unwrap(),
        state: CellState::Ready,
        slots: 4,
        busy: u32::try_from(reported_ms % 4).unwrap(),
        epoch: 1,
        generation: 0,
        sequence: reported_ms,
        reported_ms,
    }
}
