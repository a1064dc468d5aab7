// Shows what Orthanc holds in OHIF: serves the built viewer beside DICOMweb, opens it in headless Chromium, takes pictures.
//
//   node viewer.mjs REQUEST.json        (in the folder whose node_modules holds playwright-core)
//
// REQUEST: dist (the built viewer), orthanc (its address), chromium, study (UID), seg and pdf (Series UIDs), out (folder).
// Writes seg.png and report.png, and held.json: what the viewer holds of the SEG, by SOP Instance UID of the image.
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

// What the viewer holds of the segmentation: for each source image, its segment numbers, row by row, in base64.
function held() {
  const { cache, metaData } = window.cornerstone;
  const images = {};
  for (const segmentation of window.services.segmentationService.getSegmentations()) {
    const { imageIds = [], referencedImageIds = [] } = segmentation.representationData.Labelmap ?? {};
    imageIds.forEach((id, index) => {
      const values = cache.getImage(id)?.voxelManager.getScalarData();
      if (!values?.some((value) => value)) return;
      const text = Array.from(values, (value) => String.fromCharCode(value)).join("");
      images[metaData.get("instance", referencedImageIds[index]).SOPInstanceUID] = btoa(text);
    });
  }
  return JSON.stringify(images);
}

// The segmentation comes frame by frame: wait until what is held changes no more.
async function everythingHeld(page) {
  let last = "";
  for (let waited = 0; waited < PATIENCE_MS; waited += 3000) {
    const now = await page.evaluate(held);
    if (now.length > 2 && now === last) return now;
    last = now;
    await page.waitForTimeout(3000);
  }
  throw new Error("the viewer never held the segmentation");
}

// Turns to the slice where most segments are seen.
async function turnToTheFullest() {
  const { segmentationService, viewportGridService, cornerstoneViewportService } = window.services;
  const { cache, utilities } = window.cornerstone;
  let best = { segments: 0, voxels: 0, image: null };
  const labelmap = segmentationService.getSegmentations()[0].representationData.Labelmap;
  labelmap.imageIds.forEach((id, index) => {
    const values = cache.getImage(id)?.voxelManager.getScalarData() ?? [];
    const segments = new Set(values);
    segments.delete(0);
    const voxels = values.reduce((sum, value) => sum + (value ? 1 : 0), 0);
    if (segments.size > best.segments || (segments.size === best.segments && voxels > best.voxels)) {
      best = { segments: segments.size, voxels, image: labelmap.referencedImageIds[index] };
    }
  });
  const viewport = cornerstoneViewportService.getCornerstoneViewport(viewportGridService.getActiveViewportId());
  const imageIndex = viewport.getImageIds().indexOf(best.image);
  if (imageIndex >= 0) await utilities.jumpToSlice(viewport.element, { imageIndex });
}

// The PDF is drawn by a plugin of the browser's own, whose pixels only a picture shows: wait until it grows no more.
async function pictureOfThePlugin(page) {
  let last = 0;
  for (let tries = 0; tries < 60; tries += 1) {
    const picture = await page.screenshot();
    if (picture.length === last && picture.length > 60000) return picture;
    last = picture.length;
    await page.waitForTimeout(2000);
  }
  throw new Error("the report was never drawn");
}

async function show(page, series) {
  const uid = await page.evaluate((one) => window.services.displaySetService.getActiveDisplaySets()
    .find((set) => set.SeriesInstanceUID === one)?.displaySetInstanceUID, series);
  if (!uid) throw new Error(`the viewer lists no display set of series ${series}`);
  const thumbnail = page.locator(`#thumbnail-${CSS_ESCAPE(uid)}`);
  await thumbnail.scrollIntoViewIfNeeded();
  await thumbnail.dblclick({ timeout: PATIENCE_MS });
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
  await show(page, wanted.seg);
  await writeFile(join(wanted.out, "held.json"), await everythingHeld(page));
  await page.evaluate(turnToTheFullest);
  await page.waitForTimeout(4000);
  await page.screenshot({ path: join(wanted.out, "seg.png") });
  await show(page, wanted.pdf);
  await writeFile(join(wanted.out, "report.png"), await pictureOfThePlugin(page));
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
