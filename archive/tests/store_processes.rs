//! Several processes on one folder, killed at any moment: every acknowledged write stands, no increment is lost
//! or counted twice, and what the dead were writing is removed.
//!
//! The workers are this test binary, run again with a folder in the environment.

mod store_common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use store_common::envelope;
use tidelog_archive::ErrorKind;
use tidelog_archive::store::{Store, StoreOptions};

const FOLDER: &str = "TIDELOG_TEST_WORKER_FOLDER";
const NAME: &str = "TIDELOG_TEST_WORKER_NAME";

fn counter(value: u64, name: u64) -> Bytes {
    // Bytes never repeat: the writer's name and its own write id stand in them.
    let mut bytes = envelope(0, "").to_vec();
    bytes[16..24].copy_from_slice(&name.to_le_bytes());
    bytes[24..32].copy_from_slice(&value.to_le_bytes());
    bytes.into()
}

fn value(bytes: &Bytes) -> u64 {
    u64::from_le_bytes(bytes[24..32].try_into().expect("eight bytes"))
}

/// What a worker does: create an object, add one to the shared counter, tell, and again.
async fn work(folder: &str, name: u64) {
    let url = format!("file://{folder}");
    let store = Store::open(&url, StoreOptions::default()).expect("the store opens");
    for n in 0.. {
        let key = format!("made/{name}/{n}");
        store
            .create(&key, Bytes::from(key.clone()))
            .await
            .expect("nobody else has this key");
        loop {
            let (bytes, version) = store.get_versioned("counter").await.expect("it exists");
            let next = counter(value(&bytes) + 1, name);
            match store.replace("counter", next, &version).await {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
            }
        }
        writeln!(std::io::stdout(), "done {key}").expect("the parent reads");
    }
}

#[tokio::test]
async fn worker() {
    // Does nothing unless the test below runs it.
    if let (Ok(folder), Ok(name)) = (std::env::var(FOLDER), std::env::var(NAME)) {
        work(&folder, name.parse().expect("a number")).await;
    }
}

fn spawn(folder: &std::path::Path, name: u64) -> Child {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["worker", "--exact", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .env(NAME, name.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this binary runs")
}

/// Runs one worker until it has told of `writes` writes, then kills it; what it told.
fn run_and_kill(folder: &std::path::Path, name: u64, writes: usize) -> Vec<String> {
    let mut child = spawn(folder, name);
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut told = Vec::new();
    for line in lines {
        let line = line.expect("text");
        if let Some((_, key)) = line.split_once("done ") {
            told.push(key.to_owned());
            // SIGKILL, at whatever it is doing by now; what is in the pipe still counts.
            if told.len() == writes {
                child.kill().expect("it runs");
            }
        }
    }
    child.wait().expect("it was started");
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_processes_on_one_folder_lose_and_repeat_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let store = Store::open(&url, StoreOptions::default()).unwrap();
    store.create("counter", counter(0, 0)).await.unwrap();

    let lives = 24_u64;
    let threads: Vec<_> = (0..3)
        .map(|lane| {
            let folder = folder.path().to_owned();
            tokio::task::spawn_blocking(move || {
                let mine = (0..lives).filter(|life| life % 3 == lane);
                mine.flat_map(|life| {
                    run_and_kill(
                        &folder,
                        life + 1,
                        1 + usize::try_from(life % 7).unwrap_or(0),
                    )
                })
                .collect::<Vec<_>>()
            })
        })
        .collect();
    let mut told = Vec::new();
    for thread in threads {
        told.extend(thread.await.unwrap());
    }

    for key in &told {
        assert_eq!(store.get(key).await.unwrap(), Bytes::from(key.clone()));
    }
    // Each kill may have left one increment untold.
    let counted = value(&store.get("counter").await.unwrap());
    let told = told.len() as u64;
    assert!(
        told >= lives && counted >= told && counted <= told + lives,
        "{told} {counted}"
    );
    // The dead leave nothing once the store is opened again.
    drop(store);
    drop(Store::open(&url, StoreOptions::default()).unwrap());
    let staging = folder.path().join(".tidelog/staging");
    let left: Vec<_> = std::fs::read_dir(staging)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "turn")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
