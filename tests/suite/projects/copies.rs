//! Claims about what a project has of the SDK beside itself, and about a folder that only has its name.

use std::fs;
use std::path::{Path, PathBuf};

use millrace::cli::toolchain::vendor;
use tempfile::TempDir;

/// An SDK, its world and a project.
fn scene() -> (TempDir, [PathBuf; 3]) {
    let folder = tempfile::tempdir().expect("a folder");
    let places = ["sdk", "wit", "project"].map(|name| folder.path().join(name));
    write(&places[0].join("millrace/index.mjs"), "new");
    write(&places[1].join("world.wit"), "world");
    write(&places[2].join("src/plugin.mjs"), "mine");
    (folder, places)
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is the test's");
    fs::write(path, text).expect("the folder is the test's");
}

fn read(path: PathBuf) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[test]
fn a_folder_of_the_author_with_the_name_of_the_copy_is_left_alone() {
    let (_folder, [sdk, wit, project]) = scene();
    let own = project.join("millrace/deep/own.mjs");
    write(&own, "mine");
    let error = vendor(&sdk, &wit, &project).expect_err("it is the author's");
    assert!(error.to_string().contains("is no copy of the SDK"), "{error}");
    assert_eq!(read(own).as_deref(), Some("mine"));
    assert!(!project.join("millrace/VERSION").exists(), "it would be taken for a copy next time");

    fs::remove_dir_all(project.join("millrace/deep")).expect("the folder is the test's");
    assert!(vendor(&sdk, &wit, &project).expect("an empty folder is nobody's"), "it is copied");
    assert_eq!(read(project.join("millrace/index.mjs")).as_deref(), Some("new"));
}

#[test]
fn a_copy_that_was_interrupted_is_made_again() {
    let (_folder, [sdk, wit, project]) = scene();
    // It cannot become a folder of the copy, where a file of that name stands from the first on.
    let obstacle = sdk.join("millrace/VERSION");
    for older in [false, true] {
        write(&obstacle.join("a"), "1");
        vendor(&sdk, &wit, &project).expect_err("it is interrupted");
        write(&project.join("millrace/left/half.mjs"), "half");
        fs::remove_dir_all(&obstacle).expect("the folder is the test's");
        assert!(vendor(&sdk, &wit, &project).expect("it is made again"), "older: {older}");
        assert_eq!(read(project.join("millrace/index.mjs")).as_deref(), Some("new"));
        assert_eq!(read(project.join("millrace/left/half.mjs")), None, "older: {older}");
        assert!(!vendor(&sdk, &wit, &project).expect("it is looked at"), "it is whole");
    }
}

#[test]
fn a_link_in_the_place_of_the_copy_goes_and_what_it_leads_to_stays() {
    let (folder, [sdk, wit, project]) = scene();
    let beside = folder.path().join("beside");
    write(&beside.join("VERSION"), "older\n");
    write(&beside.join("index.mjs"), "old");
    std::os::unix::fs::symlink(&beside, project.join("millrace")).expect("the folder is the test's");
    assert!(vendor(&sdk, &wit, &project).expect("it is copied"), "it was older");
    assert_eq!(read(project.join("millrace/index.mjs")).as_deref(), Some("new"));
    assert_eq!(read(beside.join("index.mjs")).as_deref(), Some("old"));
}
