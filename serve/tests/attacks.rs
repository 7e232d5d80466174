//! What a server on the open net has to bear: it answers good requests in between, and takes no more memory than it may.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod program;

use std::io::{Cursor, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use image::codecs::png::PngEncoder;
use image::{
    DynamicImage, ExtendedColorType, GrayImage, ImageBuffer, ImageEncoder as _, ImageFormat,
    RgbImage,
};
use program::{FORM, Server, answer, form};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

const TOKEN: &str = "0123456789abcdef";
const OPTIONS: [&str; 20] = [
    "--token",
    TOKEN,
    "--header-timeout",
    "2",
    "--answer-timeout",
    "1",
    "--body-timeout",
    "2",
    "--max-body",
    "2",
    "--max-bodies",
    "32",
    "--max-connections",
    "700",
    "--max-connections-per-address",
    "650",
    "--max-requests",
    "20",
    "--max-picture",
    "64",
];

/// What the process may take at most: libtorch and the network, and what the bounds above allow.
const MEMORY: u64 = 900 << 20;

fn authorization() -> String {
    format!("Authorization: Bearer {TOKEN}")
}

fn predict(server: &Server, pictures: &[(&str, &[u8])]) -> u16 {
    let authorization = authorization();
    let lines = [FORM, &authorization];
    server
        .ask("POST /v1/predict", &lines, &form(pictures))
        .status
}

/// Asks as a good client does, which comes again when it is told to.
fn is_answered(server: &Server) {
    let cat = server.picture("cats/0.png");
    for _ in 0..100 {
        match predict(server, &[("cat.png", &cat)]) {
            200 => return,
            429 => thread::sleep(Duration::from_millis(100)),
            other => panic!("a good request is answered by {other}"),
        }
    }
    panic!("a good request is never answered");
}

fn in_formats(server: &Server) -> Vec<Vec<u8>> {
    let picture = image::load_from_memory(&server.picture("cats/0.png")).unwrap();
    let formats = [
        ImageFormat::Jpeg,
        ImageFormat::Png,
        ImageFormat::Gif,
        ImageFormat::WebP,
        ImageFormat::Bmp,
    ];
    let encoded = formats.map(|format| {
        let mut file = Cursor::new(Vec::new());
        picture.write_to(&mut file, format).unwrap();
        file.into_inner()
    });
    encoded.to_vec()
}

/// Changes, removes or repeats some bytes of a file.
fn mutated(file: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut file = file.to_vec();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..file.len());
        match random.random_range(0..4) {
            0 => file.truncate(at.max(1)),
            1 => file.extend_from_within(at..),
            _ => file[at] = random.random(),
        }
    }
    file
}

#[test]
#[ignore = "needs weights"]
fn ten_thousand_damaged_pictures_are_classified_or_refused() {
    let server = Server::start(&OPTIONS);
    let (files, mut random) = (in_formats(&server), ChaCha8Rng::seed_from_u64(1));
    for round in 0..625 {
        let damaged: Vec<Vec<u8>> = (0..16)
            .map(|at| mutated(&files[at % files.len()], &mut random))
            .collect();
        let parts: Vec<(&str, &[u8])> = damaged.iter().map(|file| ("x", &file[..])).collect();
        let status = predict(&server, &parts);
        assert!([200, 422].contains(&status), "round {round}: {status}");
    }
    is_answered(&server);
    server.is_within(MEMORY);
}

#[test]
#[ignore = "needs weights"]
fn pictures_that_would_take_much_are_refused_by_their_headers() {
    let server = Server::start(&OPTIONS);
    let [jpeg, png, ..] = &in_formats(&server)[..] else {
        unreachable!();
    };
    let sized = |kind: u8| {
        let mut file = jpeg.clone();
        let frame = file
            .windows(2)
            .position(|mark| mark == [0xff, 0xc0])
            .unwrap();
        // Its kind, and 50,000 rows and columns.
        file[frame + 1] = kind;
        file[frame + 5..frame + 9].copy_from_slice(&[0xc3, 0x50, 0xc3, 0x50]);
        file
    };
    let mut wide = png.clone();
    wide[16..24].copy_from_slice(&[0, 0, 0xc3, 0x50, 0, 0, 0xc3, 0x50]);
    let flat = |image: DynamicImage, format| {
        let mut file = Cursor::new(Vec::new());
        image.write_to(&mut file, format).unwrap();
        file.into_inner()
    };
    let long = GrayImage::new(1, 1_000_000).into();
    let deep = DynamicImage::ImageLuma16(ImageBuffer::new(5000, 5000));
    let bombs = [
        sized(0xc0),
        sized(0xc2),
        wide,
        flat(RgbImage::new(6000, 6000).into(), ImageFormat::Png),
        // A third of what is allowed, until it is RGB.
        flat(GrayImage::new(6000, 6000).into(), ImageFormat::Png),
        flat(deep, ImageFormat::Png),
        flat(long, ImageFormat::Png),
        // Decoded into RGBA beside the RGB.
        flat(RgbImage::new(4500, 4500).into(), ImageFormat::WebP),
        many_scans(),
    ];
    for (at, bomb) in bombs.iter().enumerate() {
        assert!(bomb.len() < 1 << 20);
        assert_eq!(predict(&server, &[("bomb", &bomb[..])]), 422, "bomb {at}");
        is_answered(&server);
    }
    // It is classified, without what is too much.
    let mut profile = Vec::new();
    let mut encoder = PngEncoder::new(&mut profile);
    encoder.set_icc_profile(vec![0; 200 << 20]).unwrap();
    let written = encoder.write_image(&[0; 192], 8, 8, ExtendedColorType::Rgb8);
    written.unwrap();
    assert!(profile.len() < 1 << 20);
    assert_eq!(predict(&server, &[("profile", &profile[..])]), 200);
    server.is_within(MEMORY);
}

/// Returns a gray progressive JPEG of 3000 x 3000 pixels that goes through them 1000 times, in 45 KB.
fn many_scans() -> Vec<u8> {
    const BLOCKS: usize = 375 * 375;
    // A code of one bit, which stands for this.
    let table = |kind: u8, symbol: u8| {
        let mut table = vec![0xff, 0xc4, 0, 20, kind, 1];
        table.extend([0; 15]);
        table.push(symbol);
        table
    };
    let scan = |first: u8, last: u8, bits: u8, data: usize| {
        let header = [0xff, 0xda, 0, 8, 1, 1, 0, first, last, bits];
        [&header[..], &vec![0; data]].concat()
    };
    [
        &[0xff, 0xd8, 0xff, 0xdb, 0, 67, 0][..],
        &[1; 64],
        &[0xff, 0xc2, 0, 11, 8, 0x0b, 0xb8, 0x0b, 0xb8, 1, 1, 0x11, 0],
        &table(0x00, 0),
        // 16,384 blocks and 14 bits more in which nothing changes.
        &table(0x10, 0xe0),
        &scan(0, 0, 0x01, BLOCKS.div_ceil(8)),
        &scan(1, 63, 0x10, (BLOCKS.div_ceil(1 << 14) * 15).div_ceil(8)).repeat(1000),
        &[0xff, 0xd9],
    ]
    .concat()
}

#[test]
#[ignore = "needs weights"]
fn slow_endless_and_broken_requests_do_not_keep_others_waiting() {
    let server = Server::start(&OPTIONS);
    is_answered(&server);
    let (before, start) = (server.open_files(), Instant::now());
    let send = |text: &str| {
        let mut stream = server.connect();
        // It may have been turned away already.
        let _ = stream.write_all(text.as_bytes());
        stream
    };
    let header = |length: usize| {
        let authorization = authorization();
        format!(
            "POST /v1/predict HTTP/1.1\r\nHost: x\r\n{authorization}\r\n{FORM}\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut slow: Vec<TcpStream> = (0..400)
        .map(|_| send("POST /v1/predict HTTP/1.1\r\nHost: "))
        .collect();
    slow.extend((0..100).map(|_| send("")));
    is_answered(&server);
    assert!(start.elapsed() < Duration::from_secs(30));
    for stream in slow {
        assert!([0, 408].contains(&answer(stream).status));
    }
    // Far more than the requests that are answered at the same time, of which none of them is one yet.
    let slow_bodies: Vec<TcpStream> = (0..500)
        .map(|_| send(&(header(100_000) + "--X\r\n")))
        .collect();
    let cat = server.picture("cats/0.png");
    assert_eq!(predict(&server, &[("cat.png", &cat)]), 200);
    for stream in slow_bodies {
        assert_eq!(answer(stream).status, 408);
    }

    let mut endless = send(&header(0).replace("Content-Length: 0", "Transfer-Encoding: chunked"));
    let chunk = [b"10000\r\n", &vec![0; 1 << 16][..], b"\r\n"].concat();
    let sent = (0..10_000)
        .take_while(|_| endless.write_all(&chunk).is_ok())
        .count();
    assert!(sent < 10_000, "an endless body is read on and on");

    let whole = form(&[("cat.png", &cat)]);
    for length in (0..whole.len()).step_by(whole.len() / 50 + 1) {
        let lines = [FORM, &authorization()];
        let status = server
            .ask("POST /v1/predict", &lines, &whole[..length])
            .status;
        assert_eq!(status, 400, "{length} bytes of {}", whole.len());
    }
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..100 {
        let noise: Vec<u8> = (0..random.random_range(1..2000))
            .map(|_| random.random())
            .collect();
        let mut stream = server.connect();
        let _ = stream.write_all(&noise);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!([0, 400, 414, 431].contains(&answer(stream).status));
    }
    for path in [
        "/../Cargo.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/page.js/../../x",
        "/v1/..%5c",
    ] {
        assert_eq!(
            server.ask(&format!("GET {path}"), &[], b"").status,
            404,
            "{path}"
        );
    }
    for wrong in 0..100 {
        let line = format!("Authorization: Bearer {TOKEN}{wrong}");
        assert_eq!(server.ask("GET /v1/model", &[&line], b"").status, 401);
    }
    is_answered(&server);
    server.is_within(MEMORY);
    let end = Instant::now() + Duration::from_secs(20);
    while server.open_files() > before + 2 {
        assert!(
            Instant::now() < end,
            "{} open files after {before}",
            server.open_files()
        );
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "needs weights"]
fn clients_that_read_no_answers_are_closed() {
    let server = Server::start(&OPTIONS);
    let asked = "GET /page.js HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2000);
    // Answers of 40 MB each, which the system has no room for.
    let clients: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(asked.as_bytes()).unwrap();
            stream
        })
        .collect();
    is_answered(&server);
    let authorization = authorization();
    let is_alone = || {
        let metrics = server.ask("GET /metrics", &[&authorization], b"").body;
        metrics.contains("serve_connections 1\n")
    };
    let end = Instant::now() + Duration::from_secs(30);
    while !is_alone() {
        assert!(
            Instant::now() < end,
            "a connection is kept for answers that nobody reads"
        );
        thread::sleep(Duration::from_millis(50));
    }
    drop(clients);
    server.is_within(MEMORY);
}

#[test]
#[ignore = "needs weights"]
fn ten_times_more_than_it_can_do_is_turned_away_in_time() {
    let server = Server::start(&OPTIONS);
    let cat = server.picture("cats/0.png");
    let found: Vec<u16> = thread::scope(|scope| {
        let ask = || {
            (0..5)
                .map(|_| predict(&server, &[("cat.png", &cat)]))
                .collect::<Vec<_>>()
        };
        let clients: Vec<_> = (0..200).map(|_| scope.spawn(ask)).collect();
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    });
    let count = |status| found.iter().filter(|&&found| found == status).count();
    assert_eq!(count(200) + count(429), found.len(), "{found:?}");
    assert!(
        count(200) > 0 && count(429) > 0,
        "{} were answered",
        count(200)
    );
    is_answered(&server);
    server.is_within(MEMORY);
}
