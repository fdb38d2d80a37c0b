// A person with a browser: node login.mjs CHROMIUM ADDRESS NAME FOLDER PREFIX. Logs in as
// NAME, connects the machine, and writes pictures of the pages to FOLDER. Our pages must
// work without scripts, so scripts are off.
import puppeteer from 'puppeteer-core';

const [executablePath, address, name, folder, prefix] = process.argv.slice(2);
const DESK = { width: 1000, height: 760 };
const PHONE = { width: 360, height: 740, isMobile: true, deviceScaleFactor: 2 };
const browser = await puppeteer.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
});

async function pictures(page, step) {
  for (const scheme of ['light', 'dark']) {
    for (const [size, viewport] of [['desk', DESK], ['phone', PHONE]]) {
      await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
      await page.setViewport(viewport);
      await page.screenshot({ path: `${folder}/${prefix}-${step}-${scheme}-${size}.png` });
    }
  }
  await page.setViewport(DESK);
}

async function follow(page, selector) {
  await Promise.all([page.waitForNavigation(), page.click(selector)]);
}

try {
  const page = await browser.newPage();
  await page.setJavaScriptEnabled(false);
  await page.goto(address);
  await pictures(page, '1-machine');
  await follow(page, 'a.button');
  await page.type('input[name=login]', name);
  await page.type('input[name=password]', 'any');
  await follow(page, 'button[type=submit]');
  // The provider asks whether this application may know who the person is.
  if (!page.url().includes('/login/')) await follow(page, 'button[type=submit]');
  await pictures(page, '2-confirm');
  await follow(page, 'button[value=connect]');
  await pictures(page, '3-done');
  console.log(await page.$eval('main', (main) => main.textContent));
} finally {
  await browser.close();
}
