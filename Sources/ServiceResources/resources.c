// Embeds the page and the description of the service. A new file is added twice: its bytes, and its row in `resources`
// (a test compares the rows with the folder).
#include "service_resources.h"

static const unsigned char openapi_json[] = {
#embed "openapi.json"
};
static const unsigned char index_html[] = {
#embed "Page/index.html"
};
static const unsigned char page_css[] = {
#embed "Page/page.css"
};
static const unsigned char page_js[] = {
#embed "Page/page.js"
};
static const unsigned char form_js[] = {
#embed "Page/form.js"
};
static const unsigned char service_js[] = {
#embed "Page/service.js"
};

static const struct service_resource resources[] = {
    {"openapi.json", "application/json", openapi_json, sizeof openapi_json},
    {"index.html", "text/html; charset=utf-8", index_html, sizeof index_html},
    {"page.css", "text/css; charset=utf-8", page_css, sizeof page_css},
    {"page.js", "text/javascript; charset=utf-8", page_js, sizeof page_js},
    {"form.js", "text/javascript; charset=utf-8", form_js, sizeof form_js},
    {"service.js", "text/javascript; charset=utf-8", service_js, sizeof service_js},
};

const struct service_resource *service_resource(int index) {
    const int count = sizeof resources / sizeof resources[0];
    return index >= 0 && index < count ? &resources[index] : NULL;
}
