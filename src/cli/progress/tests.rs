//! Whole drawings of recorded logs.

use workflows::contract::{AttemptId, LogRecord};

use super::frame::{Canvas, frame};
use super::plain::Plain;
use super::steps::Steps;

/// The records of a build with two steps side by side, one of which fails.
const BUILD: &str = r#"
{"seq":1,"at_ms":1000,"type":"note","text":"docker/dockerfile:1 runs on the built-in frontend"}
{"seq":2,"at_ms":1000,"type":"vertex","vertex":"a","name":"[internal] load build definition from Dockerfile"}
{"seq":3,"at_ms":1000,"type":"vertex","vertex":"a","name":"[internal] load build definition from Dockerfile","started_ms":1000}
{"seq":4,"at_ms":1010,"type":"progress","vertex":"a","id":"transferring dockerfile:","name":"","current":32,"total":0}
{"seq":5,"at_ms":1030,"type":"progress","vertex":"a","id":"transferring dockerfile:","name":"","current":32,"total":0,"done":true}
{"seq":6,"at_ms":1040,"type":"vertex","vertex":"a","name":"[internal] load build definition from Dockerfile","started_ms":1000,"completed_ms":1040}
{"seq":7,"at_ms":1100,"type":"vertex","vertex":"b","name":"[build 1/3] FROM docker.io/library/busybox"}
{"seq":8,"at_ms":1100,"type":"vertex","vertex":"b","name":"[build 1/3] FROM docker.io/library/busybox","started_ms":1100,"completed_ms":1100,"cached":true}
{"seq":9,"at_ms":1200,"type":"vertex","vertex":"c","name":"[build 2/3] RUN make","started_ms":1200}
{"seq":10,"at_ms":1210,"type":"vertex","vertex":"d","name":"[test 2/2] RUN check","started_ms":1210}
{"seq":11,"at_ms":1300,"type":"output","vertex":"c","stream":1,"text":"compiling\nlin"}
{"seq":12,"at_ms":1400,"type":"output","vertex":"d","stream":2,"text":"checking\n"}
{"seq":13,"at_ms":1500,"type":"output","vertex":"c","stream":1,"text":"king\n"}
{"seq":14,"at_ms":1500,"type":"warning","vertex":"c","text":"slow step"}
{"seq":15,"at_ms":1600,"type":"output","vertex":"d","stream":1,"text":"50%\r100%"}
{"seq":16,"at_ms":1700,"type":"vertex","vertex":"d","name":"[test 2/2] RUN check","started_ms":1210,"completed_ms":1700,"error":"process \"/bin/sh -c check\" did not complete successfully: exit code: 1"}
{"seq":17,"at_ms":1710,"type":"vertex","vertex":"c","name":"[build 2/3] RUN make","started_ms":1200,"completed_ms":1710,"error":"context canceled"}
{"seq":18,"at_ms":1720,"type":"cut","records":3,"bytes":2048,"reason":"the spool was full"}
{"seq":19,"at_ms":1720,"type":"end"}
"#;

fn records(text: &str) -> Vec<LogRecord> {
    text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn attempt(number: u32) -> AttemptId {
    let platform = "linux/amd64".parse().unwrap();
    AttemptId { workflow_id: "build/web/a".into(), run_id: "r".into(), platform, number }
}

fn plain(steps: &mut Steps, plain: &mut Plain, records: Vec<LogRecord>) -> String {
    for record in records {
        for change in steps.take(record) {
            plain.add(steps, change);
        }
    }
    plain.take()
}

#[test]
fn lines_of_a_step_stay_together() {
    let (mut steps, mut lines) = (Steps::default(), Plain::default());
    let mut text = plain(&mut steps, &mut lines, records(BUILD));
    lines.finish(&steps);
    text.push_str(&lines.take());
    assert_eq!(
        text,
        "\
kiln: docker/dockerfile:1 runs on the built-in frontend

#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 32B 0.0s done
#1 DONE 0.0s

#2 [build 1/3] FROM docker.io/library/busybox
#2 CACHED

#3 [build 2/3] RUN make
#3 0.100 compiling
#3 0.300 linking
#3 WARN: slow step
#3 CANCELED

#4 [test 2/2] RUN check
#4 0.190 checking
#4 0.390 50%
#4 0.490 100%
#4 ERROR: process \"/bin/sh -c check\" did not complete successfully: exit code: 1

kiln: 3 records (2.05kB) are missing here: the spool was full
"
    );
}

/// A step that waits for a lock must not hide for how long another one has been talking.
#[test]
fn a_silent_step_makes_room() {
    let (mut steps, mut lines) = (Steps::default(), Plain::default());
    let log = r#"
{"seq":1,"at_ms":0,"type":"vertex","vertex":"a","name":"quiet","started_ms":0}
{"seq":2,"at_ms":10,"type":"vertex","vertex":"b","name":"loud","started_ms":10}
{"seq":3,"at_ms":500,"type":"output","vertex":"b","stream":1,"text":"one\n"}
{"seq":4,"at_ms":900,"type":"output","vertex":"b","stream":1,"text":"two\n"}
"#;
    assert_eq!(plain(&mut steps, &mut lines, records(log)), "#1 quiet\n");
    lines.tick(&steps, 1_900);
    assert_eq!(lines.take(), "");
    lines.tick(&steps, 2_000);
    assert_eq!(lines.take(), "#1 ...\n\n#2 loud\n#2 0.490 one\n#2 0.890 two\n");
}

/// And what comes late of the former one does not come between.
#[test]
fn numbers_go_on_in_the_next_attempt() {
    let (mut steps, mut lines) = (Steps::default(), Plain::default());
    let log = r#"{"seq":1,"at_ms":0,"type":"vertex","vertex":"a","name":"step","started_ms":0,"completed_ms":100}"#;
    let mut text = String::new();
    for number in [1, 1, 2, 1, 2] {
        for change in steps.attempt(attempt(number)) {
            lines.add(&steps, change);
        }
        text.push_str(&plain(&mut steps, &mut lines, records(log)));
    }
    lines.finish(&steps);
    text.push_str(&lines.take());
    assert_eq!(text, "#1 step\n#1 DONE 0.1s\n\n#2 step\n#2 DONE 0.1s\n");
}

/// BuildKit tells a step's end before the last that is said of it when both happen at once, and ends some steps several times.
#[test]
fn what_comes_with_the_end_comes_before_it() {
    let (mut steps, mut lines) = (Steps::default(), Plain::default());
    let log = r#"
{"seq":1,"at_ms":0,"type":"vertex","vertex":"a","name":"FROM busybox","started_ms":0,"completed_ms":20}
{"seq":2,"at_ms":20,"type":"progress","vertex":"a","id":"resolve busybox","name":"","current":0,"total":0,"done":true}
{"seq":3,"at_ms":30,"type":"vertex","vertex":"b","name":"RUN true","started_ms":30}
{"seq":4,"at_ms":60,"type":"vertex","vertex":"a","name":"FROM busybox","started_ms":40,"completed_ms":60,"cached":true}
{"seq":5,"at_ms":70,"type":"output","vertex":"b","stream":1,"text":"out\n"}
{"seq":6,"at_ms":300,"type":"vertex","vertex":"b","name":"RUN true","started_ms":30,"completed_ms":300}
"#;
    let mut text = plain(&mut steps, &mut lines, records(log));
    lines.tick(&steps, 399);
    assert_eq!(lines.take(), "");
    lines.tick(&steps, 400);
    text.push_str(&lines.take());
    assert_eq!(
        text,
        "\
#1 FROM busybox
#1 resolve busybox done
#1 CACHED

#2 RUN true
#2 0.040 out
#2 DONE 0.3s
"
    );
}

/// Three steps end and begin within a moment: each is shown once.
#[test]
fn steps_that_end_together_are_not_shown_in_turns() {
    let (mut steps, mut lines) = (Steps::default(), Plain::default());
    let log = r#"
{"seq":1,"at_ms":0,"type":"vertex","vertex":"a","name":"load context","started_ms":0}
{"seq":2,"at_ms":10,"type":"vertex","vertex":"b","name":"RUN one","started_ms":10}
{"seq":3,"at_ms":500,"type":"vertex","vertex":"a","name":"load context","started_ms":0,"completed_ms":500}
{"seq":4,"at_ms":700,"type":"vertex","vertex":"b","name":"RUN one","started_ms":10,"completed_ms":700}
{"seq":5,"at_ms":710,"type":"vertex","vertex":"c","name":"COPY","started_ms":710}
{"seq":6,"at_ms":720,"type":"vertex","vertex":"c","name":"COPY","started_ms":710,"completed_ms":720}
{"seq":7,"at_ms":730,"type":"vertex","vertex":"d","name":"RUN two","started_ms":730}
"#;
    let mut text = plain(&mut steps, &mut lines, records(log));
    lines.tick(&steps, 830);
    text.push_str(&lines.take());
    assert_eq!(
        text,
        "\
#1 load context
#1 DONE 0.5s

#2 RUN one
#2 DONE 0.7s

#3 COPY
#3 DONE 0.0s

#4 RUN two
"
    );
}

#[test]
fn a_moving_part_is_shown_now_and_then() {
    let (mut steps, mut lines) = (Steps::default(), Plain::default());
    let mut log = r#"{"seq":1,"at_ms":0,"type":"vertex","vertex":"a","name":"pull","started_ms":0}"#.to_owned();
    for at_ms in (0..=2_000).step_by(100) {
        let done = at_ms == 2_000;
        let current = at_ms * 1_000;
        log.push_str(&format!(
            "\n{{\"seq\":1,\"at_ms\":{at_ms},\"type\":\"progress\",\"vertex\":\"a\",\"id\":\"sha256:0a\",\"name\":\"\",\
             \"current\":{current},\"total\":2000000,\"done\":{done}}}"
        ));
    }
    assert_eq!(
        plain(&mut steps, &mut lines, records(&log)),
        "\
#1 pull
#1 sha256:0a 1.00MB / 2.00MB 1.0s
#1 sha256:0a 2.00MB / 2.00MB 2.0s done
"
    );
}

fn drawn(steps: &Steps, now_ms: u64, height: Option<usize>, colours: bool) -> String {
    frame(steps, now_ms, Canvas { width: 60, height, colours }).join("\n")
}

#[test]
fn a_picture_of_a_running_build() {
    let mut steps = Steps::default();
    for record in records(BUILD).into_iter().take(15) {
        steps.take(record);
    }
    assert_eq!(
        drawn(&steps, 2_600, Some(24), false),
        "\
[+] Building 1.6s (2/4)
 => [internal] load build definition from Dockerfile   0.0s
 => => transferring dockerfile: 32B 0.0s done          0.0s
 => CACHED [build 1/3] FROM docker.io/library/busybox  0.0s
 => [build 2/3] RUN make                               1.4s
 => => # compiling
 => => # linking
 => [test 2/2] RUN check                               1.4s
 => => # checking
 => => # 50%"
    );
}

#[test]
fn a_picture_of_an_ended_build() {
    let mut steps = Steps::default();
    for record in records(BUILD) {
        steps.take(record);
    }
    assert_eq!(
        drawn(&steps, 1_720, None, true).replace('\x1b', "^"),
        "\
[+] Building 0.7s (4/4)
^[34m => [internal] load build definition from Dockerfile   0.0s^[0m
^[34m => => transferring dockerfile: 32B 0.0s done          0.0s^[0m
^[34m => CACHED [build 1/3] FROM docker.io/library/busybox  0.0s^[0m
^[33m => CANCELED [build 2/3] RUN make                      0.5s^[0m
^[31m => ERROR [test 2/2] RUN check                         0.5s^[0m"
    );
}

#[test]
fn a_low_terminal_shows_what_runs_and_what_ended_last() {
    let mut steps = Steps::default();
    for record in records(BUILD).into_iter().take(15) {
        steps.take(record);
    }
    assert_eq!(
        drawn(&steps, 2_600, Some(9), false),
        "\
[+] Building 1.6s (2/4)
 => CACHED [build 1/3] FROM docker.io/library/busybox  0.0s
 => [build 2/3] RUN make                               1.4s
 => => # compiling
 => => # linking
 => [test 2/2] RUN check                               1.4s
 => => # checking
 => => # 50%"
    );
}

#[test]
fn output_cannot_move_the_cursor() {
    let mut steps = Steps::default();
    let log = r#"
{"seq":1,"at_ms":0,"type":"vertex","vertex":"a","name":"a step whose name is far too long for the width of this terminal","started_ms":0}
{"seq":2,"at_ms":0,"type":"output","vertex":"a","stream":1,"text":"\u001b[31mred\u001b[0m\ttab\u0007\r\n10%\r20%\r\n\u001b]0;title\u0007end\u001b[2A\n"}
"#;
    for record in records(log) {
        steps.take(record);
    }
    assert_eq!(
        drawn(&steps, 0, Some(24), false),
        "\
[+] Building 0.0s (0/1)
 => a step whose name is far too long for the width o… 0.0s
 => => # red tab
 => => # 20%
 => => # end"
    );
}
