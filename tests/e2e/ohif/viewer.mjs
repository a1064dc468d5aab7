// Shows what Orthanc holds in OHIF: serves the built viewer beside DICOMweb, opens it in headless Chromium, takes pictures.
//
//   node viewer.mjs REQUEST.json        (in the folder whose node_modules holds playwright-core)
//
// REQUEST: dist (the built viewer), orthanc (its address), chromium, study (UID), seg and pdf (Series UIDs), out (folder).
// Writes seg.png and report.png, and held.json: voxels by segment number that the viewer holds of the SEG.
import { createServer, request } from "node:http";
import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { extname, join, normalize } from "node:path";

const { chromium } = createRequire(join(process.cwd(), "package.json"))("playwright-core");
const wanted = JSON.parse(await readFile(process.argv[2], "utf-8"));
const PATIENCE_MS = 400000;
const KINDS = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm",
                ".json": "application/json", ".svg": "image/svg+xml", ".png": "image/png", ".ico": "image/x-icon" };
// SharedArrayBuffer, which the viewer's decoders use, is given to isolated pages only.
const ISOLATED = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

function configuration(root) {
  const web = { namespace: "@ohif/extension-default.dataSourcesModule.dicomweb", sourceName: "dicomweb",
    configuration: { friendlyName: "Orthanc", name: "orthanc", wadoUriRoot: `${root}/dicom-web`,
      qidoRoot: `${root}/dicom-web`, wadoRoot: `${root}/dicom-web`, qidoSupportsIncludeField: false,
      imageRendering: "wadors", thumbnailRendering: "wadors", enableStudyLazyLoad: true, supportsFuzzyMatching: false,
      supportsWildcard: true, omitQuotationForMultipartRequest: true, bulkDataURI: { enabled: true } } };
  return "window.config = " + JSON.stringify({ routerBasename: "/", extensions: [], modes: [], showStudyList: true,
    maxNumberOfWebWorkers: 2, showWarningMessageForCrossOrigin: false, showCPUFallbackMessage: false,
    showLoadingIndicator: true, disableConfirmationPrompts: true, strictZSpacingForVolumeViewport: true,
    investigationalUseDialog: { option: "never" }, dataSources: [web], defaultDataSourceName: "dicomweb" });
}

function forward(asked, answer) {
  const to = new URL(wanted.orthanc);
  // Orthanc writes addresses of bulk data from Host; a compressed answer would be passed on without its header.
  const headers = { ...asked.headers };
  delete headers["accept-encoding"];
  const through = request({ host: to.hostname, port: to.port, path: asked.url, method: asked.method, headers }, (got) => {
    answer.writeHead(got.statusCode, { ...got.headers, ...ISOLATED, "Cross-Origin-Resource-Policy": "same-origin" });
    got.pipe(answer);
  });
  through.on("error", () => answer.writeHead(502).end());
  asked.pipe(through);
}

async function serve(asked, answer) {
  const path = new URL(asked.url, "http://x").pathname;
  if (path.startsWith("/dicom-web")) return forward(asked, answer);
  if (path === "/app-config.js") {
    return answer.writeHead(200, { "Content-Type": "text/javascript", ...ISOLATED }).end(configuration(`http://${asked.headers.host}`));
  }
  const file = join(wanted.dist, normalize(path));
  const found = extname(path) ? await readFile(file).catch(() => null) : await readFile(join(wanted.dist, "index.html"));
  if (found === null) return answer.writeHead(404, ISOLATED).end();
  answer.writeHead(200, { "Content-Type": KINDS[extname(path) || ".html"] ?? "application/octet-stream", ...ISOLATED }).end(found);
}

// What the viewer holds of the segmentation: voxels by segment number.
function held() {
  const service = window.services?.segmentationService;
  const cache = window.cornerstone?.cache;
  if (!service || !cache) return null;
  const counts = {};
  for (const segmentation of service.getSegmentations()) {
    const labelmap = segmentation.representationData?.Labelmap;
    const volume = labelmap?.volumeId && cache.getVolume(labelmap.volumeId);
    const parts = volume ? [volume] : (labelmap?.imageIds ?? []).map((id) => cache.getImage(id)).filter(Boolean);
    for (const part of parts) {
      const values = part.voxelManager.getCompleteScalarDataArray?.() ?? part.voxelManager.getScalarData();
      for (const value of values) if (value) counts[value] = (counts[value] ?? 0) + 1;
    }
  }
  return Object.keys(counts).length ? counts : null;
}

async function show(page, series, settled) {
  const uid = await page.evaluate((one) => window.services.displaySetService.getActiveDisplaySets()
    .find((set) => set.SeriesInstanceUID === one)?.displaySetInstanceUID, series);
  if (!uid) throw new Error(`the viewer lists no display set of series ${series}`);
  const thumbnail = page.locator(`#thumbnail-${CSS_ESCAPE(uid)}`);
  await thumbnail.scrollIntoViewIfNeeded();
  await thumbnail.dblclick({ timeout: PATIENCE_MS });
  await settled();
  await page.waitForTimeout(4000);
}

const CSS_ESCAPE = (text) => text.replace(/[^a-zA-Z0-9_-]/g, (letter) => `\\${letter}`);

const server = createServer((asked, answer) => serve(asked, answer).catch(() => answer.writeHead(500).end()));
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const root = `http://127.0.0.1:${server.address().port}`;
const browser = await chromium.launch({ executablePath: wanted.chromium, args: ["--no-sandbox",
  "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--disable-dev-shm-usage"] });
try {
  const page = await browser.newPage({ viewport: { width: 1440, height: 900 } });
  page.on("pageerror", (error) => console.error("page:", error.message));
  await page.goto(`${root}/viewer?StudyInstanceUIDs=${wanted.study}`, { timeout: PATIENCE_MS, waitUntil: "domcontentloaded" });
  await page.addStyleTag({ content: ".shepherd-element, .shepherd-modal-overlay-container { display: none !important }" });
  await page.waitForFunction((count) => (window.services?.displaySetService?.getActiveDisplaySets() ?? []).length >= count,
    wanted.display_sets, { timeout: PATIENCE_MS });
  await page.waitForTimeout(5000);
  await show(page, wanted.seg, async () => {
    await page.waitForFunction(held, null, { timeout: PATIENCE_MS, polling: 1000 });
  });
  await writeFile(join(wanted.out, "held.json"), JSON.stringify(await page.evaluate(held)));
  await page.screenshot({ path: join(wanted.out, "seg.png") });
  await show(page, wanted.pdf, () => page.locator("object, iframe, embed").first().waitFor({ timeout: PATIENCE_MS, state: "attached" }));
  await page.screenshot({ path: join(wanted.out, "report.png") });
} catch (error) {
  // What stood on the screen says more than the error.
  for (const context of browser.contexts()) {
    for (const page of context.pages()) await page.screenshot({ path: join(wanted.out, "failed.png") });
  }
  throw error;
} finally {
  await browser.close();
  server.close();
}
