//! Files that are wrong: each is said by its member, and nobody is asked.

use clap::Parser as _;
use millrace::cli::{Cli, Exit};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_plan_is_said_by_its_member() {
    let desk = Desk::new().await;
    let last = "\n[[waves]]\n";
    for (text, words) in [
        ("", "it has no waves"),
        ("waves = 3", "waves is not a list"),
        ("waves = [3]", "waves[0] is not a table"),
        ("[[waves]]\npercent = 0\n", "waves[0].percent is 0; it is 1 to 100"),
        ("[[waves]]\npercent = 101\n", "waves[0].percent is 101"),
        ("[[waves]]\npercent = \"all\"\n", "waves[0].percent is not a whole number"),
        ("[[waves]]\n[[waves]]\nsoak = \"10x\"\n", "waves[1].soak is `10x`"),
        ("[[waves]]\nsoak = \"1500ms\"\n", "waves[0].soak is `1500ms`: it is counted in whole seconds"),
        ("[[waves]]\nsoak = 10\n", "waves[0].soak is not a time such as \"10m\""),
        ("[[waves]]\nsoak = \"1s\"\nsoak_s = 1\n", "waves[0].soak and waves[0].soak_s say the same"),
        ("[[waves]]\nsoak = \"99999d\"\n", "soak_s is 8639913600"),
        ("[[waves]]\nlabels = { zone = 1 }\n", "waves[0].labels.zone is not a text"),
        ("[[waves]]\nlabels = { \"a b\" = \"c\" }\n[[waves]]\n", "labels: the name or the value of `a b`"),
        ("[[waves]]\nsoka = \"1s\"\n", "waves[0].soka is not known; there are labels, percent and soak"),
        ("[[waves]]\npercent = 50\n", "the last wave of a plan"),
        ("automatik = true\n[[waves]]\n", "automatik is not known"),
        ("automatic = 1\n[[waves]]\n", "automatic is neither true nor false"),
        ("gate = 1\n[[waves]]\n", "gate is not a table"),
        ("[gate]\nevents_min = -1\n[[waves]]\n", "gate.events_min is -1"),
        ("[gate]\nerrors = 1\n[[waves]]\n", "gate.errors is not known"),
        ("[gate]\nunavailable_percent_max = 200\n[[waves]]\n", "gate.unavailable_percent_max is 200"),
        ("[gate]\nwait_max = \"soon\"\n[[waves]]\n", "gate.wait_max is `soon`"),
        ("[[waves]]\npercent =\n", "line 2"),
    ] {
        let plan = desk.write("plan.toml", text);
        let server = Scripted::new(Vec::new());
        let start = ["rollout", "start", PLUGIN, "--artifact", "sha256:1", "--plan", &plan];
        let error = desk.ran(&server, &start).await.0.unwrap_err();
        assert_eq!(error.exit(), Exit::Usage, "{text}: {error}");
        assert!(error.sentence().contains(words), "{text}: {error}");
        assert!(
            error.sentence().contains("plan.toml") && !error.sentence().contains('\n'),
            "{text}: {error}"
        );
        assert!(server.asked().is_empty());
    }
    // What is more than a plan can be is refused as well.
    let many = desk.write("plan.toml", &last.repeat(millrace::limits::CONTROL_WAVES_MAX + 1));
    let server = Scripted::new(Vec::new());
    let start = ["rollout", "start", PLUGIN, "--artifact", "sha256:1", "--plan", &many];
    let error = desk.ran(&server, &start).await.0.unwrap_err();
    assert!(error.sentence().contains("a plan of 33 waves"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_of_the_help_is_one() {
    let desk = Desk::new().await;
    let mut command = <Cli as clap::CommandFactory>::command();
    let start = command.find_subcommand_mut("rollout").unwrap().find_subcommand_mut("start").unwrap();
    let help = start.get_after_help().unwrap().to_string();
    let example = |from: &str, to: &str| {
        let (_, rest) = help.split_once(from).unwrap();
        rest.split_once(to).unwrap().0.to_owned()
    };
    let plan = desk.write("plan.toml", &example("A plan file:\n", "\n\nA settings file"));
    let settings = desk.write("board.toml", &example("all of it optional:\n", "\n\nWhat is not given"));
    let present = standing(rollout(Progress::Complete));
    let server = Scripted::new(vec![stands(&[&present]), fine(json!({ "hosts": [] }))]);
    let component = desk.write("board.wasm", "a component");
    let start = [
        "rollout",
        "start",
        PLUGIN,
        "--artifact",
        &component,
        "--version-is",
        "3.0.0",
        "--plan",
        &plan,
        "--settings",
        &settings,
        "--dry-run",
    ];
    desk.ran(&server, &start).await.0.unwrap();
    let event = ControlEvent::parse(&server.asked()[1].body.to_string()).unwrap();
    let plan = &desired_of(&event).rollout.as_ref().unwrap().plan;
    assert_eq!((plan.waves.len(), plan.waves[0].soak_s, plan.waves[1].percent), (3, 600, 25));
    assert_eq!((plan.gate, plan.automatic), (Gate::default(), true), "it shows what there is without it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_configuration_or_settings_file_is_said_by_its_member() {
    let desk = Desk::new().await;
    for (option, name, text, words) in [
        ("--settings", "s.toml", "memory = 1", "`memory` is none of memory_bytes_max"),
        ("--settings", "s.toml", "[config]\na = \"b\"", "give it with --config"),
        ("--settings", "s.toml", "grants = ", "line 1"),
        ("--config", "c.json", "{\"a\": 1}", "is not a JSON object of texts"),
        ("--config", "c.json", "", "is not a JSON object of texts"),
    ] {
        let file = desk.write(name, text);
        let server = Scripted::new(Vec::new());
        let start = ["rollout", "start", PLUGIN, "--artifact", "sha256:1", option, &file];
        let error = desk.ran(&server, &start).await.0.unwrap_err();
        assert_eq!(error.exit(), Exit::Usage, "{text}: {error}");
        assert!(error.sentence().contains(words) && error.sentence().contains(name), "{text}: {error}");
        assert!(server.asked().is_empty());
    }
    // What only an event can tell is told before anything is stored.
    for (text, words) in [
        ("grants = [\"http\"]", "`http` is granted without `http_hosts`"),
        ("lanes = 0", "lanes is 0"),
        ("memory_bytes_max = \"all\"", "invalid type"),
        ("call_ms_max = 1.5", "not whole"),
    ] {
        let (settings, component) = (desk.write("s.toml", text), desk.write("c.wasm", "a component"));
        let server = Scripted::new(vec![stands(&[])]);
        let start = [
            "rollout",
            "start",
            PLUGIN,
            "--artifact",
            &component,
            "--version-is",
            "1.0.0",
            "--settings",
            &settings,
        ];
        let error = desk.ran(&server, &start).await.0.unwrap_err();
        assert_eq!(error.exit(), Exit::Usage, "{text}: {error}");
        assert!(error.sentence().contains(words), "{text}: {error}");
        assert_eq!(server.asked().len(), 1);
    }
}

#[test]
fn waves_of_the_command_line_are_read_or_refused() {
    let parsed = |wave: &str| {
        let start = ["millrace", "rollout", "start", PLUGIN, "--artifact", "x", "--key", "k", "--wave", wave];
        Cli::try_parse_from(start)
    };
    for wave in ["all", "all:5", "all:5%:1h", "zone=a", "zone=a,tier=b:100:90s", "a/b=c_d:1:0s"] {
        parsed(wave).unwrap();
    }
    for (wave, words) in [
        ("zone", "neither `all` nor a label"),
        ("=a", "neither `all` nor a label"),
        ("", "neither `all` nor a label"),
        ("zone=a:0", "percent is 0"),
        ("all:lots", "`lots` is not a number"),
        ("all:5:soon", "soak `soon`"),
        ("all:5:1h:x", "three parts at most"),
        ("zone=ü", "`zone` is not 1 to 63"),
    ] {
        let error = parsed(wave).unwrap_err().to_string();
        assert!(error.contains(words), "{wave}: {error}");
    }
    let both = ["--plan", "p", "--wave", "all"];
    let start = ["millrace", "rollout", "start", PLUGIN, "--artifact", "x", "--key", "k"];
    Cli::try_parse_from([&start[..], &both].concat()).unwrap_err();
}
